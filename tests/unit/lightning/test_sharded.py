"""Modules that Lightning shards over two processes equal those of one."""

import pytest
import torch

from tests.unit.lightning.run_sharded import CASES, fitted, parameters
from tests.unit.two_processes import found_by

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("sharded") / "parameters"
    return found_by("tests.unit.lightning.run_sharded", out)


@pytest.mark.parametrize("case", CASES)
def test_shards_equal_one_process(two_processes: list[dict], case: str) -> None:
    expected = parameters(fitted(case, 1))
    for found in two_processes:
        assert found[case].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[case][name], value, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_resumes_from_a_checkpoint_in_one_file_or_in_shards(
    two_processes: list[dict], whole: bool
) -> None:
    for found in two_processes:
        for name, value in found["Jacobian, clipped"].items():
            assert torch.equal(found[f"resumed, whole={whole}"][name], value), name
