"""Train your own LightningModule on several losses: ``python examples/own_lightning_module.py``."""

from dataclasses import dataclass

import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset, default_collate

import multitask


@dataclass
class Batch:
    """Inputs, ``[batch, 8]``, and classes, ``[batch]``. A batch can be any nesting of tensors."""

    x: Tensor
    y: Tensor


class Autoencoder(multitask.MultiLossModule):
    """Reconstructs and classifies. Everything but :meth:`losses` is plain Lightning."""

    def __init__(self) -> None:
        super().__init__(weighting=multitask.UPGrad())
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.GELU())
        self.decoder, self.classifier = nn.Linear(16, 8), nn.Linear(16, 2)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean losses; a mean over anything but the examples is given as ``(loss, count)``."""
        code = self.encoder(batch.x)
        return {
            "reconstruction": mse_loss(self.decoder(code), batch.x),
            "class": cross_entropy(self.classifier(code), batch.y),
        }

    def configure_optimizers(self) -> dict:
        """Return optimizer and scheduler, as in any LightningModule."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main(epochs: int = 4, **trainer: object) -> dict[str, Tensor]:
    """Train and validate, and return the logged ``val/loss/<name>`` and ``val/loss``."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    data = TensorDataset(x, (x[:, 0] > x[:, 1]).long())
    loader = DataLoader(data, 32, collate_fn=lambda rows: Batch(*default_collate(rows)))
    keys = {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0, "default_root_dir": "logs/own_module"}
    runner = Trainer(max_epochs=epochs, **(keys | trainer))
    runner.fit(Autoencoder(), loader, loader)
    return dict(runner.callback_metrics)


if __name__ == "__main__":
    print(main())
