"""The progress of a run that is written to a file."""

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from multitask.callbacks.progress import Progress


class _Regression(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("length", "first", "last", "lines"),
    [
        ({"max_epochs": 3}, "Epoch 1/3: 100%", "Epoch 3/3: 100%", 3),
        ({"max_epochs": 70}, "Epoch 3/70: 100%", "Epoch 70/70: 100%", 24),
        ({"max_epochs": -1, "max_steps": 90}, "Epoch 2: 100%", "Epoch 45: 100%", 23),
        ({"max_epochs": -1, "max_steps": 3}, "Epoch 1: 100%", "Epoch 2: 100%", 2),
    ],
)
def test_progress_in_a_file_takes_few_lines(
    length: dict[str, int], first: str, last: str, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = Trainer(
        accelerator="cpu",
        callbacks=[Progress()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        **length,
    )
    trainer.fit(_Regression(), DataLoader(TensorDataset(torch.ones(4, 1)), batch_size=2))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == lines
    assert printed[0].startswith(first)
    assert printed[-1].startswith(last)
