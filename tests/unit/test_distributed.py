"""Two processes with half the batch each equal one process with the whole batch."""

import pytest
import torch

from tests.unit.run_distributed import JACOBIAN_METHODS, KINDS, METHODS, VARIANTS, train, train_kind
from tests.unit.two_processes import found_by
from tests.unit.weighting.members import number_of_tasks
from tests.unit.weighting.promises import READS_JACOBIAN

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return found_by("tests.unit.run_distributed", tmp_path_factory.mktemp("two") / "found")


def assert_equal_one(processes: list[dict], key: tuple, expected: dict[str, torch.Tensor]) -> None:
    first, second = (found[key] for found in processes)
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_processes_equal_one(two_processes: list[dict], method: str, accumulate: int) -> None:
    """With an uneven last batch, and a task with labels only in some batches and on some ranks."""
    assert_equal_one(two_processes, (method, accumulate), train(method, 8, accumulate, devices=1))


@pytest.mark.parametrize("variant", VARIANTS)
def test_processes_equal_one_for_each_variant(two_processes: list[dict], variant: str) -> None:
    method, _ = VARIANTS[variant]
    assert_equal_one(two_processes, (variant, 2), train(method, 8, 2, variant=variant, devices=1))


@pytest.mark.parametrize(("kind", "method"), KINDS)
def test_processes_equal_one_for_each_kind_of_loss(two_processes: list[dict], kind: str, method: str) -> None:
    assert_equal_one(two_processes, ("kind", kind, method), train_kind(kind, method, 8, devices=1))


@pytest.mark.parametrize("method", JACOBIAN_METHODS)
def test_number_of_elements_transferred(two_processes: list[dict], method: str) -> None:
    """A process transfers (m + 1) n elements, m n more if the method reads the Jacobian, and a few others."""
    m = number_of_tasks(method) * (2 if method in ("modo", "sdmgrad") else 1)
    n, heads = 5 * 4 + 4, number_of_tasks(method) * (4 * 2 + 2)
    parameters = 2 * number_of_tasks(method)
    for found in two_processes:
        numbers = found["wire", method]
        assert numbers["reduce_scatter"] == m * n
        reads = method in READS_JACOBIAN.split()
        combines = method not in ("db_mtl", "graddrop", "m_config", "moco", "trimmed_mean")
        assert numbers["all_gather"] == (combines + reads * m) * n
        # Counts, losses, the Gramian; the gradients of heads and which exist; a few of the Trainer.
        assert numbers["all_reduce"] <= 2 * m + m * m + parameters + heads + 5
