"""Writes a checkpoint's predictions for the examples of a split, as a table or as arrays."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig
from torch import Tensor

from multitask.data.base import DataModule
from multitask.errors import ConfigError
from multitask.lightning.module import MultiLossModule
from multitask.run.build import build_data
from multitask.run.data import bare_trainer, evaluation_data
from multitask.run.weights import load_model, opened

ID = "id"
"""The column, or array, that names the examples."""


def predict(config: DictConfig) -> Path:
    """Write the predictions of a checkpoint's weights to a file, and print and return its path."""
    output = Path(config.output)
    with opened(config, "cannot predict") as content:
        if output.suffix not in _WRITERS:
            raise ConfigError(f"output={output} ends neither with .csv nor with .npz; name a file that does.")
        data = build_data(config)
        if config.split not in data.splits:
            raise ConfigError(f"split={config.split} is not in the data, which has {', '.join(data.splits)}.")
        if config.split == "train" and not isinstance(data, DataModule) and config.ids is None:
            raise ConfigError(
                "split=train: the data module's loader may shuffle it; set ids=<key> to the batch's key of names."
            )
        module = load_model(config, content["state_dict"])
        if not is_overridden("predict_step", module, MultiLossModule):
            raise ConfigError(
                f"model: {type(module).__name__} defines no predict_step; let it return predictions by name."
            )
        found = _Predictions(config.ids)
        # On one device, so that every example appears once, in order.
        trainer = bare_trainer(
            accelerator=config.trainer.accelerator,
            precision=config.trainer.precision,
            inference_mode=config.trainer.get("inference_mode", False),
            callbacks=[found],
        )
        trainer.predict(module, evaluation_data(data, config.split), return_predictions=False)
        arrays = found.arrays()
        ids: Sequence[Any] = found.ids
        if config.ids is None:
            named = data.ids(config.split) if isinstance(data, DataModule) else None
            ids = range(len(next(iter(arrays.values())))) if named is None else named
        _WRITERS[output.suffix](output, ids, arrays)
    print(output)
    return output


class _Predictions(Callback):
    """Collects predictions on the CPU, and the names of the examples if the batch has a key for them."""

    def __init__(self, key: str | None) -> None:
        self.key = key
        self.ids: list[Any] = []
        self._parts: dict[str, list[Tensor]] = {}

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Store a batch's predictions."""
        if not isinstance(outputs, Mapping) or not all(isinstance(v, Tensor) for v in outputs.values()):
            raise ConfigError(
                "model: predict_step does not return tensors by name; let it return {name: predictions}."
            )
        for name, values in outputs.items():
            self._parts.setdefault(name, []).append(values.detach().cpu())
        if self.key is not None:
            if self.key not in batch:
                raise ConfigError(
                    f"ids={self.key} is not a key of a batch, which has {', '.join(map(str, batch))}."
                )
            ids = batch[self.key]
            self.ids += ids.tolist() if isinstance(ids, Tensor) else list(ids)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the predictions by name, each with one entry per example."""
        found = {}
        for name, parts in self._parts.items():
            values = _together(parts)
            half = values.dtype in (torch.float16, torch.bfloat16)
            found[name] = (values.float() if half else values).numpy()
        if taken := {ID, "file"} & found.keys():  # numpy's own name for where to write
            raise ConfigError(
                f"the predictions of '{min(taken)}' cannot be written under this name; rename the task."
            )
        return found


def _together(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate the predictions of all batches, padded with NaN to the size of the longest, as for texts."""
    longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    padded = []
    for part in parts:
        lacking = [most - size for size, most in zip(part.shape[1:], longest, strict=True)]
        # In torch's order: from the last dimension to the first, (before, after) for each.
        wanted = [number for lack in reversed(lacking) for number in (0, lack)]
        padded.append(torch.nn.functional.pad(part, wanted, value=torch.nan) if any(wanted) else part)
    return torch.cat(padded)


def _write_csv(path: Path, ids: Sequence[Any], arrays: Mapping[str, np.ndarray]) -> None:
    columns: dict[str, list[Any]] = {ID: list(ids)}
    for name, values in arrays.items():
        if values.ndim > 2:
            raise ConfigError(
                f"output={path.name} cannot hold the predictions of '{name}', {list(values.shape[1:])} per example; "
                "name a file that ends with .npz."
            )
        if values.ndim == 1 or values.shape[1] == 1:
            columns[name] = values.reshape(-1).astype(str).tolist()
        else:
            columns |= {f"{name}/{i}": column.astype(str).tolist() for i, column in enumerate(values.T)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_npz(path: Path, ids: Sequence[Any], arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{ID: np.asarray(ids)}, **arrays)  # type: ignore[arg-type]


_WRITERS = {".csv": _write_csv, ".npz": _write_npz}
