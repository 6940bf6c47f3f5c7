"""Evaluation of a checkpoint reproduces the metrics of its run."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.integration.script_runner import Scripts
from tests.integration.sweep.conftest import write_arrays
from tests.integration.sweep.small import SMALL, results_of

pytestmark = pytest.mark.slow

# A relative path with special characters of Hydra's override grammar.
FOLDER = "a b/c=1, [d] (e)"


def train(folder: Path) -> Path:
    own = (f"data.path={write_arrays(folder)}", "weighting=imtl_l", f"hydra.run.dir={FOLDER}")
    ran = Scripts(folder).run(*SMALL, *own, before=partial(os.chdir, folder))
    assert ran.code == 0, ran.err
    assert ran.folder == folder / FOLDER
    return ran.folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("trained"))


@pytest.mark.smoke("best")
@pytest.mark.parametrize("kept", ["best", "last"])
def test_checkpoint_alone_reproduces_the_results(scripts: Scripts, tmp_path: Path, kept: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    trained = train(home)
    before = (trained / "results.csv").read_text()
    checkpoint = Path(shutil.copy(trained / "checkpoints" / f"{kept}.ckpt", tmp_path / "kept, =1.ckpt"))
    shutil.rmtree(trained.parent)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ran = scripts.run(f"ckpt_path={checkpoint}", script="eval", before=partial(os.chdir, elsewhere))
    assert ran.code == 0, ran.err
    # After one epoch the last weights are the best ones.
    assert (ran.folder / "results.csv").read_text() == before
    assert list(elsewhere.iterdir()) == []


def test_data_and_batch_size_can_be_changed(scripts: Scripts, tmp_path: Path) -> None:
    trained = train(tmp_path)
    checkpoint = trained / "checkpoints" / "best.ckpt"
    moved = (tmp_path / "arrays.npz").rename(tmp_path / "moved.npz")
    given = ("data.eval_batch_size=7", "evaluation.splits=[test]", "trainer.accelerator=auto")
    here = f"hydra.run.dir={tmp_path}/measured"
    ran = scripts.run(f"ckpt_path={checkpoint}", f"data.path={moved}", *given, here, script="eval")
    assert ran.code == 0, ran.err
    assert ran.folder == tmp_path / "measured"
    expected = [row for row in results_of(trained) if row["split"] == "test"]
    for row, other in zip(results_of(ran.folder), expected, strict=True):
        assert float(row.pop("value")) == pytest.approx(float(other.pop("value")), rel=1e-5)
        assert {key: row[key] for key in ("method", "task", "metric", "split", "run", "selection")} == {
            key: other[key] for key in ("method", "task", "metric", "split", "run", "selection")
        }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trunk.widths=[5]", "is [8, 4] in the checkpoint and [5, 4] by the config"),
        (
            "evaluation.splits=[tst]",
            "evaluation.splits names tst, and the data has train, val, test; name one of these.",
        ),
        ("data.path=nowhere.npz", "data.path=nowhere.npz does not exist"),
        ("data.eval_batch_sze=1", "did you mean 'eval_batch_size'?"),
    ],
)
def test_incompatible_config_is_rejected(
    trained: Path, scripts: Scripts, override: str, message: str
) -> None:
    ran = scripts.run(f"ckpt_path={trained}/checkpoints/best.ckpt", override, script="eval")
    ran.assert_error(message)
    assert list(scripts.logs.glob("*/evaluations/*")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"no checkpoint", "cannot be read: it is cut short"),
        ({"state_dict": {}}, "contains no config"),
    ],
)
def test_invalid_checkpoint_is_rejected(
    scripts: Scripts, tmp_path: Path, content: bytes | dict[str, object] | None, message: str
) -> None:
    file = tmp_path / "x.ckpt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    ran = scripts.run(f"ckpt_path={file}", script="eval")
    assert ran.code == 1
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not scripts.logs.exists()
