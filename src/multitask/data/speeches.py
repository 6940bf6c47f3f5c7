"""Sentences of real speeches: the party of who speaks, and the year."""

import csv
import gzip
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from multitask.data.base import Split
from multitask.data.files import existing
from multitask.data.loading import Made, split_indices
from multitask.data.text import Text

PARTIES = ("Republican", "Democratic", "Democratic-Republican")
"""The classes of ``party``; one more is for all others, and for none."""
PAD, START, UNKNOWN = 0, 1, 2


@dataclass(eq=False)
class Speeches(Text):
    """6,907 sentences of the State of the Union addresses of 1790 to 2021, 30 of each at most, after a ``[CLS]``.

    ``party`` is a class (:data:`PARTIES`), ``year`` a number. All sentences of an address are in one split. A token is
    a lower-case word or a punctuation mark; all numbers are one token, since a year would reveal the target.

    Args:
        path: The file: separated by tabs, with a line of names, gzipped.
        vocabulary: How many tokens have an id: the most frequent ones of the training split. The others share one.
        split: Shares of train, validation and test among the addresses.
        split_seed: Seed of the split: fixed, so that runs of all seeds share one test set.
    """

    path: str
    vocabulary: int = 4096
    split: Sequence[float] = (0.7, 0.1, 0.2)
    split_seed: int = 0
    pad: int = field(default=PAD, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocabulary <= UNKNOWN:
            raise ValueError(
                f"data.vocabulary={self.vocabulary} is too small; the ids to {UNKNOWN} are taken, give more."
            )

    def load(self) -> dict[str, Split]:
        """Read the sentences, split them by address, and give the training split's words their ids."""
        path = existing(self.path, "it comes with the package")
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        by_address: dict[tuple[str, str], list[dict[str, str]]] = {}
        for row in rows:
            by_address.setdefault((row["year"], row["president"]), []).append(row)
        addresses = list(by_address.values())
        parts = split_indices(len(addresses), self.split, self.split_seed)
        divided = {name: [row for i in part.tolist() for row in addresses[i]] for name, part in parts.items()}
        counted = Counter(token for row in divided.get("train", []) for token in tokens(row["sentence"]))
        kept = [token for token, _ in counted.most_common(self.vocabulary - UNKNOWN - 1)]
        ids = {token: number for number, token in enumerate(kept, UNKNOWN + 1)}
        examples = {name: [_example(row, ids) for row in rows] for name, rows in divided.items()}
        return {name: Made(len(made), made.__getitem__) for name, made in examples.items()}


def tokens(sentence: str) -> list[str]:
    """Return the tokens of a sentence."""
    return re.findall(r"#|[a-z]+(?:'[a-z]+)?|[^\sa-z]", re.sub(r"\d[\d,.]*", "#", sentence.lower()))


def _example(row: dict[str, str], ids: dict[str, int]) -> dict[str, Any]:
    found = torch.tensor([START, *(ids.get(token, UNKNOWN) for token in tokens(row["sentence"]))])
    party = PARTIES.index(row["party"]) if row["party"] in PARTIES else len(PARTIES)
    return {
        "inputs": {"input_ids": found, "attention_mask": torch.ones_like(found)},
        "party": torch.tensor(party),
        "year": torch.tensor(float(row["year"])),
    }
