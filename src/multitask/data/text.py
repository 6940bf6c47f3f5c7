"""Texts of varying length: each batch is padded to its longest text."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from multitask.data.base import Lazy
from multitask.data.loading import missing_label


@dataclass(eq=False)
class Text(Lazy):
    """Examples whose ``inputs`` are tensors by name with one entry per token: ``input_ids``, ``attention_mask``.

    In a batch they are ``[batch, tokens]``; ``input_ids`` are padded with ``pad``, others with zeros. Targets with one
    entry per token are padded with the missing label: −100 for integers, NaN for floats.

    Args:
        pad: The token id of padding.
    """

    _: KW_ONLY
    pad: int = 0
    batch_size: int | None = 32
    eval_batch_size: int = 128

    def collate(self, examples: list[Mapping[str, Any]]) -> dict[str, Any]:
        """Pad to the longest example of the batch."""
        inputs = [example["inputs"] for example in examples]
        batch: dict[str, Any] = {
            "inputs": {
                key: _joined([one[key] for one in inputs], self.pad if key == "input_ids" else 0)
                for key in inputs[0]
            }
        }
        for key in examples[0].keys() - {"inputs"}:
            values = [example[key] for example in examples]
            blank = missing_label(values[0])
            # Labels are empty in texts of a corpus that does not have them.
            lengths = [len(next(iter(one.values()))) for one in inputs]
            pairs = zip(values, lengths, strict=True)
            whole = [value if value.numel() else value.new_full((length,), blank) for value, length in pairs]
            batch[key] = _joined(whole, blank)
        return batch


def _joined(values: Sequence[Tensor], blank: float) -> Tensor:
    if not values[0].ndim:
        return torch.stack(list(values))
    return pad_sequence(list(values), batch_first=True, padding_value=blank)
