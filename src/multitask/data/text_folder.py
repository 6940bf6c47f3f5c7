"""User-supplied texts: a Hugging Face data set on disk, tokenized or not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from multitask.data.base import Split
from multitask.data.files import existing
from multitask.data.loading import SPLITS, missing_label, split_indices
from multitask.data.text import Text
from multitask.extras import imported


@dataclass(eq=False)
class TextFolder(Text):
    """A data set written by ``save_to_disk``: texts or the encoder's inputs, and one column per target.

    A split named ``validation`` is used as ``val``. Without a tokenizer, the columns ``inputs`` are the encoder's
    inputs. With one, the column ``text`` contains texts or lists of words; a target with one label per word then
    labels the first token of each word, and the other tokens are missing: −100 for integers, NaN for floats.

    Args:
        path: The folder.
        inputs: The encoder's inputs: names of columns, or of the tokenizer's outputs.
        targets: The target columns; ``None`` for all numeric columns.
        text: The text column.
        tokenizer: A local folder with a tokenizer saved by ``save_pretrained``.
        max_length: Maximum number of tokens per text, with a tokenizer.
        split: Shares of train, validation and test, if the data set has no splits.
        split_seed: Seed of a split by shares.
        pad: The token id of padding, unless the tokenizer defines it.
    """

    path: str | None
    inputs: Sequence[str] = ("input_ids", "attention_mask")
    targets: Sequence[str] | None = None
    text: str | None = None
    tokenizer: str | None = None
    max_length: int | None = None
    split: Sequence[float] = (0.8, 0.1, 0.1)
    split_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.text is None) != (self.tokenizer is None):
            raise ValueError(
                f"data.text={self.text} and data.tokenizer={self.tokenizer}: a tokenizer needs the column with texts, "
                "and texts need a tokenizer; set both or neither."
            )

    def load(self) -> dict[str, Split]:
        """Open the folder; examples are read on demand."""
        datasets = imported("datasets", "huggingface", "data=text_folder")
        path = existing(self.path, "give a folder written by datasets' save_to_disk", folder=True)
        stored = datasets.load_from_disk(str(path))
        if not isinstance(stored, Mapping):
            parts = split_indices(len(stored), self.split, self.split_seed)
            stored = {name: stored.select(part.tolist()) for name, part in parts.items()}
        splits = {"val" if name == "validation" else name: split for name, split in stored.items()}
        if unknown := [name for name in splits if name not in SPLITS]:
            raise ValueError(
                f"data.path={self.path} has a split {unknown[0]}; call the splits train, validation and test."
            )
        tokenizer = None if self.tokenizer is None else self._tokenizer(self.tokenizer)
        return {name: self._examples(split, tokenizer) for name, split in splits.items()}

    def _tokenizer(self, folder: str) -> Any:
        transformers = imported("transformers", "huggingface", "data.tokenizer")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(f"data.tokenizer={folder} has no tokenizer saved by save_pretrained.") from error
        if tokenizer.pad_token_id is not None:
            self.pad = tokenizer.pad_token_id
        return tokenizer

    def _examples(self, split: Any, tokenizer: Any) -> "_Texts":
        read = [self.text] if tokenizer else self.inputs
        targets = self.targets
        if targets is None:
            example = split[0]
            targets = [key for key in split.column_names if key not in read and _is_numeric(example[key])]
        for name in (*read, *targets):
            if name not in split.column_names:
                raise ValueError(
                    f"data.path={self.path} has no column '{name}'; it has {', '.join(split.column_names)}."
                )
        columns = split.select_columns([*dict.fromkeys((*read, *targets))])
        return _Texts(columns, self, list(targets), tokenizer)


class _Texts(Dataset[dict[str, Any]]):
    def __init__(self, rows: Any, data: TextFolder, targets: list[str], tokenizer: Any) -> None:
        self._rows = rows
        self._inputs, self._text, self._max_length = data.inputs, data.text, data.max_length
        self._targets = targets
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        targets = {name: _tensor(row[name]) for name in self._targets}
        if self._tokenizer is None:
            return {"inputs": {name: torch.tensor(row[name]) for name in self._inputs}, **targets}
        words, longest = row[self._text], self._max_length
        is_split = not isinstance(words, str)
        encoding = self._tokenizer(
            words, is_split_into_words=is_split, truncation=longest is not None, max_length=longest
        )
        inputs = {name: torch.tensor(encoding[name]) for name in self._inputs}
        for name, target in targets.items():
            if target.ndim and is_split and len(target) == len(words):
                targets[name] = _token_labels(target, encoding.word_ids())
        return {"inputs": inputs, **targets}


def _token_labels(labels: Tensor, words: Sequence[int | None]) -> Tensor:
    """Turn labels of words into labels of tokens: only the first token of each word is labelled."""
    of_tokens = labels.new_full((len(words),), missing_label(labels))
    for i, (before, word) in enumerate(pairwise([None, *words])):
        if word is not None and word != before:
            of_tokens[i] = labels[word]
    return of_tokens


def _tensor(value: Any) -> Tensor:
    """Return a target: floats and booleans as float32, integers as int64."""
    target = torch.tensor(value)
    return target.float() if target.dtype == torch.bool else target


def _is_numeric(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, int | float)
