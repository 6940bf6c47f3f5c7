"""Whole runs on a GPU: pytest -m gpu."""

import pytest
import torch

from tests.integration.small import Small, checkpoint

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("method", ["weighted_sum", "imtl_l", "upgrad"])
def test_gpu_matches_cpu(method: str, small: Small) -> None:
    runs = [
        small.run(f"weighting={method}", f"trainer={trainer}", "trainer.max_epochs=1")
        for trainer in ("cpu", "gpu")
    ]
    expected, state = (checkpoint(ran.folder)["state_dict"] for ran in runs)
    for key, value in expected.items():
        if key.startswith(("trunk.", "tasks.")):
            torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-5, msg=key)
