"""Sentences of speeches: splits by address, labels, and a vocabulary from the training split."""

import gzip
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import torch

from multitask.data.speeches import PARTIES, START, UNKNOWN, Speeches, tokens

FILE = Path(__file__).parents[3] / "data" / "speeches.tsv.gz"


@pytest.fixture(scope="module")
def speeches() -> Speeches:
    data = Speeches(str(FILE))
    data.setup("fit")
    return data


def test_all_sentences_of_an_address_are_in_one_split(speeches: Speeches) -> None:
    years = [
        {float(split[index]["year"]) for index in range(len(split))} for split in speeches.splits.values()
    ]
    assert sum(map(len, speeches.splits.values())) == 6907
    # In four years, both the outgoing and the incoming president spoke.
    lines = gzip.decompress(FILE.read_bytes()).decode().splitlines()[1:]
    addresses = {tuple(line.split("\t")[:2]) for line in lines}
    assert len(addresses) == 233
    twice = {float(year) for year, count in Counter(year for year, _ in addresses).items() if count > 1}
    for one, other in combinations(years, 2):
        assert one & other <= twice


def test_labels_are_those_of_the_speaker(speeches: Speeches) -> None:
    found = {}
    for split in speeches.splits.values():
        for index in range(len(split)):
            found.setdefault(int(split[index]["year"]), int(split[index]["party"]))
    assert found[1790] == len(PARTIES)  # Washington, without a party
    assert found[1805] == PARTIES.index("Democratic-Republican")
    assert found[1862] == PARTIES.index("Republican")
    assert found[1936] == PARTIES.index("Democratic")


def test_vocabulary_is_that_of_the_training_split(tmp_path: Path) -> None:
    lines = gzip.decompress(FILE.read_bytes()).decode().splitlines()[: 30 * 10 + 1]
    (tmp_path / "few.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    data = Speeches(str(tmp_path / "few.tsv.gz"), vocabulary=50)
    data.setup("fit")
    for name, split in data.splits.items():
        ids = torch.cat([split[index]["inputs"]["input_ids"] for index in range(len(split))])
        assert ids.max() < 50, name
        assert (ids == START).sum() == len(split)
        assert (ids == UNKNOWN).any()


def test_all_numbers_are_the_same_token() -> None:
    assert tokens("In 1862, $1,000.50 weren't spent.") == ["in", "#", "$", "#", "weren't", "spent", "."]


def test_missing_file_and_too_small_vocabulary_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^data.vocabulary=2 is too small"):
        Speeches(str(FILE), vocabulary=2)
    with pytest.raises(FileNotFoundError, match=r"^data.path=.*none.gz does not exist"):
        Speeches(str(tmp_path / "none.gz")).setup("fit")
