"""Abalone: the embedded table, and invalid tables."""

import gzip
from pathlib import Path

import pytest
import torch

from multitask.data.abalone import INPUTS, Abalone

DATA = Path(__file__).parents[3] / "data"


def abalone(**changes) -> Abalone:
    module = Abalone(str(DATA / "abalone.csv.gz"), **changes)
    module.setup("fit")
    return module


def test_embedded_abalone_is_complete():
    splits = abalone().splits
    assert [len(splits[name]["inputs"]) for name in ("train", "val", "test")] == [2924, 418, 835]
    whole = {key: torch.cat([part[key] for part in splits.values()]) for key in splits["train"]}
    assert whole["sex"].bincount().tolist() == [1528, 1307, 1342]
    assert whole["rings"].min() == 1
    assert whole["rings"].max() == 29
    assert whole["rings"].dtype == torch.float32
    assert whole["shell_weight"].max() == pytest.approx(1.005)
    assert whole["inputs"].shape == (4177, len(INPUTS))


def test_inputs_are_standardized_by_the_training_split_alone():
    splits = abalone().splits
    torch.testing.assert_close(splits["train"]["inputs"].mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(splits["train"]["inputs"].std(0), torch.ones(6), atol=1e-4, rtol=0)
    assert splits["test"]["inputs"].mean(0).abs().max() > 1e-3


def test_training_inputs_do_not_depend_on_the_test_split(tmp_path: Path):
    """Changing every row outside the training split leaves the training split unchanged."""
    lines = gzip.decompress((DATA / "abalone.csv.gz").read_bytes()).decode().splitlines()
    before = abalone(split=(0.5, 0.0, 0.5)).splits["train"]
    from multitask.data.loading import split_indices

    tested = split_indices(4177, (0.5, 0.0, 0.5), 0)["test"]
    for index in tested.tolist():
        lines[index + 1] = "M,9,9,9,9,9,9,9,9"
    (tmp_path / "changed.csv").write_text("\n".join(lines))
    module = Abalone(str(tmp_path / "changed.csv"), split=(0.5, 0.0, 0.5))
    module.setup("fit")
    for key, values in before.items():
        assert torch.equal(values, module.splits["train"][key])


def test_split_depends_on_its_own_seed():
    first, same, other = abalone(seed=1), abalone(seed=2), abalone(split_seed=1)
    assert torch.equal(first.splits["test"]["rings"], same.splits["test"]["rings"])
    assert not torch.equal(first.splits["test"]["rings"], other.splits["test"]["rings"])


def test_missing_and_invalid_abalone_tables_are_rejected(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"data\.path=.*columns sex, length"):
        Abalone(str(tmp_path / "none.csv")).setup("fit")
    (tmp_path / "short.csv").write_text("sex,length\nM,1\n")
    with pytest.raises(ValueError, match="no column diameter, height"):
        Abalone(str(tmp_path / "short.csv")).setup("fit")
    header = ",".join(("sex", *INPUTS, "shell_weight", "rings"))
    (tmp_path / "odd.csv").write_text(f"{header}\nX,1,1,1,1,1,1,1,1\n")
    with pytest.raises(ValueError, match="sex X"):
        Abalone(str(tmp_path / "odd.csv")).setup("fit")
    (tmp_path / "word.csv").write_text(f"{header}\nM,1,1,1,1,1,1,1,many\n")
    with pytest.raises(ValueError, match=r"row without a number: .*many"):
        Abalone(str(tmp_path / "word.csv")).setup("fit")
    (tmp_path / "table.csv.gz").write_text(header)
    with pytest.raises(ValueError, match="damaged or not text"):
        Abalone(str(tmp_path / "table.csv.gz")).setup("fit")
