"""A user module trains on two processes with half the batch each as on one with the whole batch."""

import pytest
import torch

from tests.unit.lightning.run_two_processes import CASES, probed, train
from tests.unit.lightning.test_own_module import assert_bits, assert_close
from tests.unit.two_processes import found_by

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return found_by("tests.unit.lightning.run_two_processes", tmp_path_factory.mktemp("two") / "found")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(two_processes: list[dict], case: str) -> None:
    (first, logged, automatic), (second, logged_by_second, _) = (found[case] for found in two_processes)
    expected, logged_by_one, _ = train(case, 1)
    assert automatic == ("complete" in case)
    assert_bits(second, first)
    if not case.startswith("modo"):  # the halves of two batches are not those of one
        assert_close(first, expected)
        assert logged == pytest.approx(logged_by_one, rel=1e-6)
    assert logged == logged_by_second


def test_two_processes_probe_as_one(two_processes: list[dict]) -> None:
    gramian, weights, present = probed()  # type: ignore[misc]
    assert present == [0, 1]
    for found in two_processes:
        torch.testing.assert_close(found["probe"], (gramian, weights, present))
