"""Users' models and data without trunks, heads or named batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

import multitask
from multitask.data.base import DataModule, Split


@dataclass
class Rows:
    """A batch as a dataclass."""

    x: Tensor
    y: Tensor


class Box:
    """A batch of a custom class that can be moved between devices."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def to(self, device: Any) -> "Box":
        """Return a copy on the device."""
        return Box(self.x.to(device), self.y.to(device))


def numbers(count: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, 0] > x[:, 1]).long()


class Flow(IterableDataset[Any]):
    """An iterable data set of pairs."""

    def __iter__(self) -> Iterator[Any]:
        yield from zip(*numbers(), strict=True)


class Elsewhere(LightningDataModule):
    """A data module of another project, with its own collate function, sampler and transfer hook.

    Args:
        kind: ``rows``, ``tuple`` or ``box`` for batches; ``stream`` for an iterable data set.
    """

    def __init__(self, kind: str = "rows") -> None:
        super().__init__()
        self.kind = kind
        self.stages: list[str] = []

    def setup(self, stage: str) -> None:
        """Prepare a stage; each only once."""
        assert stage not in self.stages, "set up twice"
        self.stages.append(stage)
        self.data = TensorDataset(*numbers())

    def _collate(self, rows: list[Any]) -> Any:
        x, y = default_collate(rows)
        return {"rows": Rows, "stream": Rows, "box": Box, "tuple": lambda *pair: pair}[self.kind](x, y)

    def _loader(self, **options: Any) -> DataLoader[Any]:
        data = Flow() if self.kind == "stream" else self.data
        return DataLoader(data, 8, collate_fn=self._collate, **options)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Scale the inputs."""
        assert self.trainer is not None
        if isinstance(batch, Rows):
            batch.x = 2.0 * batch.x
        return batch

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a loader with a weighted sampler."""
        sampler = None if self.kind == "stream" else WeightedRandomSampler(torch.ones(48).tolist(), 32)
        return self._loader(sampler=sampler)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Return one loader, or two."""
        return [self._loader(), self._loader()] if self.kind == "tuple" else self._loader()

    def test_dataloader(self) -> DataLoader[Any]:
        """Return a loader, after the stage has been set up."""
        assert "test" in self.stages
        return self._loader()


class Autoencoder(multitask.MultiLossModule):
    """Reconstructs and classifies; its layers need every kind of state to resume exactly.

    Args:
        width: Size of the code.
    """

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.LazyLinear(width), nn.BatchNorm1d(width), nn.Tanh(), nn.Dropout(0.1))
        self.decoder, self.classifier = nn.Linear(width, 6), nn.Linear(width, 2)

    @staticmethod
    def pair(batch: Any) -> tuple[Tensor, Tensor]:
        """Return inputs and classes of any of the batches here."""
        if isinstance(batch, dict):
            return batch["inputs"], (batch["a"] > 0).long()
        return tuple(batch) if isinstance(batch, tuple | list) else (batch.x, batch.y)  # type: ignore[return-value]

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Return both losses."""
        x, y = self.pair(batch)
        code = self.encoder(x)
        return {"rebuilt": mse_loss(self.decoder(code), x), "class": cross_entropy(self.classifier(code), y)}


class Measured(Autoencoder):
    """Defines its own validation and test steps."""

    def accuracy(self, batch: Any) -> Tensor:
        """Return the share of correct classes."""
        x, y = self.pair(batch)
        return (self.classifier(self.encoder(x)).argmax(1) == y).float().mean()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the accuracy."""
        self.log("val/class/accuracy", self.accuracy(batch), batch_size=8)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the accuracy."""
        self.log("test/class/accuracy", self.accuracy(batch), batch_size=8)

    def higher_is_better(self, task: str, metric: str) -> bool | None:
        """Return whether a higher value is better."""
        return True if metric == "accuracy" else super().higher_is_better(task, metric)


class Optimized(Autoencoder):
    """Defines its own optimizer."""

    def configure_optimizers(self) -> Any:
        """Return an optimizer and a schedule over the whole run."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Forgetful(Optimized):
    """Omits the weighting's parameters from its optimizer."""

    def configure_optimizers(self) -> Any:
        """Return an optimizer of the model's parameters alone."""
        return torch.optim.SGD([*self.encoder.parameters(), *self.decoder.parameters()], lr=0.1)


class Careless(Autoencoder):
    """Overrides a hook of the base class."""

    def on_train_epoch_end(self) -> None:
        """Do something else."""


class Examples(Dataset[Any]):
    """Examples of one structure."""

    def __init__(self, kind: str, count: int) -> None:
        self.kind, self.count = kind, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        g = torch.Generator().manual_seed(index)
        ids, x = torch.randint(1, 9, (3 + index % 4,), generator=g), torch.randn(6, generator=g)
        targets = {"a": x.sum(), "b": x[0]}
        match self.kind:
            case "ragged":
                return {"inputs": ids, **targets}
            case "named":
                return {"inputs": {"ids": ids[:3], "mask": torch.ones(3)}, **targets}
            case "several":
                return {"image": torch.randn(2, 4, generator=g), "table": x, **targets}
            case "tuple inputs":
                return {"inputs": (x, ids[:3]), **targets}
            case "file names":
                return {"inputs": x, "file": f"{index}.png", "index": index, **targets}
            case _:
                return x, x.sum(), x[0]


class Steady(IterableDataset[Any]):
    """An iterable data set of examples."""

    def __init__(self, count: int) -> None:
        self.examples = Examples("file names", count)

    def __iter__(self) -> Iterator[Any]:
        yield from (self.examples[i] for i in range(len(self.examples)))


class Kinds(DataModule):
    """A data module of this package with examples of one structure.

    Args:
        kind: Structure of the examples, or ``stream``.
        options: Options of the base class.
    """

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__(**options)
        self.kind = kind

    def load(self) -> dict[str, Split]:
        """Return the splits."""
        sizes = {"train": 32, "val": 16, "test": 17}
        if self.kind == "stream":
            return {split: Steady(count) for split, count in sizes.items()}
        return {split: Examples(self.kind, count) for split, count in sizes.items()}


def padded(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Collate token ids of any lengths, padded with zeros."""
    made = default_collate([{k: v for k, v in each.items() if k != "inputs"} for each in examples])
    ids = nn.utils.rnn.pad_sequence([each["inputs"] for each in examples], batch_first=True)
    return {"inputs": ids, **made}


class Tokens(nn.Module):
    """The mean embedding of the tokens that are not masked."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return features, ``[batch, 4]``."""
        mask = (ids > 0).float() if mask is None else mask
        return (self.table(ids) * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


class ByDict(Tokens):
    """``Tokens`` with a dict as its only argument."""

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        """Return features, ``[batch, 4]``."""
        return super().forward(inputs["ids"], inputs["mask"])


class Fused(nn.Module):
    """Takes two inputs by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 4), nn.Linear(6, 4)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        """Return features, ``[batch, 4]``."""
        return torch.tanh(self.a(image.flatten(1)) + self.b(table))


class Pair(nn.Module):
    """Takes two inputs as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.tokens = nn.Linear(6, 4), Tokens()

    def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
        """Return features, ``[batch, 4]``."""
        x, ids = both
        return self.numbers(x) + self.tokens(ids)


class Predicting(Autoencoder):
    """``Autoencoder`` with named predictions."""

    def predict_step(self, batch: Any, batch_idx: int = 0) -> dict[str, Tensor]:
        """Return the probability of the second class."""
        return {"positive": self.classifier(self.encoder(self.pair(batch)[0])).softmax(1)[:, 1]}
