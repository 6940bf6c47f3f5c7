"""Multi-loss steps in Hugging Face's Trainer."""

from pathlib import Path

import pytest

from tests.integration.examples.conftest import Reference


@pytest.mark.parametrize("accumulate", [1, 3])
def test_huggingface_trainer(reference: Reference, tmp_path: Path, accumulate: int) -> None:
    """Three epochs of eight batches; the last step of an epoch may accumulate fewer."""
    from examples import huggingface_trainer  # slow: imports transformers and datasets

    loss = huggingface_trainer.main(
        str(tmp_path), gradient_accumulation_steps=accumulate, disable_tqdm=True, max_grad_norm=0.5
    )
    assert reference.steps == 3 * -(-8 // accumulate)
    assert 0.0 < loss < 2.2
