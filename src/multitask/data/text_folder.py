"""Bring your own texts: a data set of Hugging Face's ``datasets`` on disk, tokenized or not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from multitask.data.base import SPLITS, Split
from multitask.data.loading import split_indices
from multitask.data.text import Text
from multitask.extras import imported
from multitask.losses.counts import UNSPOKEN


@dataclass(eq=False)
class TextFolder(Text):
    """What ``save_to_disk`` has written: the encoder's inputs, or texts, and one column per target.

    A split called ``validation`` is ``val``. Without a tokenizer the columns ``inputs`` are token ids and what goes
    with them. With one, the column ``text`` holds texts, or lists of words; of a target with one label per word the
    first token of each word is labelled, the others are −100, or NaN in floats.

    Args:
        path: The folder.
        inputs: The columns that the encoder takes; with a tokenizer, what of the tokenizer's output.
        targets: The columns to read as targets; ``None`` for all that hold numbers.
        text: The column with texts.
        tokenizer: A local folder with a tokenizer as ``save_pretrained`` writes it.
        max_length: Tokens after which a text is cut, where there is a tokenizer.
        split: Shares of train, validation and test, of a data set that has no splits of its own.
        split_seed: Seed of a split by shares.
        pad: The token id of padding, where no tokenizer knows it.
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
        """Open the folder, of which nothing is read but what batches need.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If a package is not installed, or a column is missing.
        """
        datasets = imported("datasets", "huggingface", "data=text_folder")
        if self.path is None or not Path(self.path).is_dir():
            what = "data.path is null" if self.path is None else f"data.path={self.path} does not exist"
            raise FileNotFoundError(f"{what}; give a folder as datasets' save_to_disk writes it.")
        found = datasets.load_from_disk(self.path)
        if not isinstance(found, Mapping):
            parts = split_indices(len(found), self.split, self.split_seed)
            found = {
                name: found.select(part.tolist())
                for name, part in zip(SPLITS, parts, strict=True)
                if len(part)
            }
        splits = {"val" if name == "validation" else name: split for name, split in found.items()}
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
            raise ValueError(
                f"data.tokenizer={folder} has no tokenizer as save_pretrained writes it."
            ) from error
        if tokenizer.pad_token_id is not None:
            self.pad = tokenizer.pad_token_id
        return tokenizer

    def _examples(self, split: Any, tokenizer: Any) -> "_Texts":
        read = [self.text] if tokenizer else self.inputs
        targets = self.targets
        if targets is None:
            example = split[0]
            targets = [name for name in split.column_names if name not in read and _numbers(example[name])]
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
        self._inputs, self._text, self._longest = data.inputs, data.text, data.max_length
        self._targets = targets
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        targets = {name: _tensor(row[name]) for name in self._targets}
        if self._tokenizer is None:
            return {"inputs": {name: torch.tensor(row[name]) for name in self._inputs}, **targets}
        words = row[self._text]
        of_words = not isinstance(words, str)
        made = self._tokenizer(
            words,
            is_split_into_words=of_words,
            truncation=self._longest is not None,
            max_length=self._longest,
        )
        inputs = {name: torch.tensor(made[name]) for name in self._inputs}
        for name, target in targets.items():
            if target.ndim and of_words and len(target) == len(words):
                targets[name] = _of_tokens(target, made.word_ids())
        return {"inputs": inputs, **targets}


def _of_tokens(labels: Tensor, words: Sequence[int | None]) -> Tensor:
    """Return the labels of words as labels of tokens: of the first token of each word."""
    blank = torch.nan if labels.is_floating_point() else UNSPOKEN
    found = labels.new_full((len(words),), blank)
    before = None
    for place, word in enumerate(words):
        if word is not None and word != before:
            found[place] = labels[word]
        before = word
    return found


def _tensor(value: Any) -> Tensor:
    """Return a target: floats and booleans as float32, integers as int64."""
    made = torch.tensor(value)
    return made.float() if made.dtype == torch.bool else made


def _numbers(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, int | float)
