"""Two processes with half the batch each equal one process with the whole batch."""

import pytest
import torch

from tests.unit.run_distributed import AROUND, JACOBIAN_METHODS, KINDS, METHODS, train, train_kind
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
    """Uneven last batches, and a task that is labelled in some batches and ranks only."""
    assert_equal_one(two_processes, (method, accumulate), train(method, 8, accumulate, devices=1))


@pytest.mark.parametrize("around", AROUND)
def test_processes_equal_one_with_what_lies_around_a_member(two_processes: list[dict], around: str) -> None:
    method, _ = AROUND[around]
    assert_equal_one(two_processes, (around, 2), train(method, 8, 2, around=around, devices=1))


@pytest.mark.parametrize(("kind", "method"), KINDS)
def test_processes_equal_one_for_each_kind_of_loss(two_processes: list[dict], kind: str, method: str) -> None:
    assert_equal_one(two_processes, ("kind", kind, method), train_kind(kind, method, 8, devices=1))


@pytest.mark.parametrize("method", JACOBIAN_METHODS)
def test_a_gradient_a_task_and_one_more_is_moved(two_processes: list[dict], method: str) -> None:
    """(m + 1) n numbers per process, and n a task more for methods that read the Jacobian; the rest is small."""
    m = number_of_tasks(method) * (2 if method in ("modo", "sdmgrad") else 1)
    n, heads = 5 * 4 + 4, number_of_tasks(method) * (4 * 2 + 2)
    parameters = 2 * number_of_tasks(method)
    for found in two_processes:
        numbers = found["wire", method]
        assert numbers["reduce_scatter"] == m * n
        reads = method in READS_JACOBIAN.split()
        combines = method not in ("db_mtl", "graddrop", "m_config", "moco", "trimmed_mean")
        assert numbers["all_gather"] == (combines + reads * m) * n
        # Masses, losses, the Gramian; which heads have a gradient, and those; a few of the Trainer's own.
        assert numbers["all_reduce"] <= 2 * m + m * m + parameters + heads + 5
