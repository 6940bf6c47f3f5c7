"""Each task's best weights and early stopping: what is kept, what rests, when the run stops, and what a resume does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import Tensor, nn

from multitask.callbacks.per_task import PerTask
from multitask.errors import ConfigError
from multitask.weighting.upgrad import UPGrad
from tests.conftest import build
from tests.unit.in_process import trained

KEYS = [
    *("experiment=abalone", "callbacks=per_task", "data.batch_size=128", "trainer.limit_train_batches=4"),
    *("callbacks.per_task.patience=2", "trainer.limit_val_batches=1"),
]
# What validation is to say in each epoch; the loss of `rings` is best in its second, `sex` improves throughout.
SAID = {
    "val/loss/sex": [9.0, 8.0, 7.0, 6.0, 5.0, 4.0],
    "val/loss/rings": [5.0, 3.0, 3.0, 4.0, 1.0, 0.5],
    "val/loss/shell_weight": [5.0, 4.0, 4.5, 3.5, 3.5, 3.5],
}


class Says(Callback):
    """Puts figures in the place of those that validation found, and notes the parameters of each epoch."""

    def __init__(self, said: dict[str, list[float]] = SAID) -> None:
        self.said = said
        self.weights: list[dict[str, Tensor]] = []
        self.validated: list[set[str]] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.validated.append(set(pl_module.validated))
        pl_module.validated |= {key: values[trainer.current_epoch] for key, values in self.said.items()}
        self.weights.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})


def kept(folder: Path, task: str) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"best_{task}.ckpt", weights_only=True)


@pytest.mark.parametrize("method", ["weighted_sum", "upgrad"])
def test_a_task_that_ends_rests_and_its_best_weights_are_kept(tmp_path: Path, method: str) -> None:
    says = Says()
    keys = [*KEYS, f"weighting={method}", "trainer.max_epochs=6"]
    module, _ = trained(tmp_path, *keys, first=says)
    for task, epoch in {"sex": 6, "rings": 2, "shell_weight": 4}.items():
        assert kept(tmp_path, task)["global_step"] == 4 * epoch
        for name, value in says.weights[epoch - 1].items():
            assert torch.equal(kept(tmp_path, task)["state_dict"][name], value), name
    # `rings` ends with its fourth validation, although it would have improved.
    heads = [
        [w["tasks.rings.head.weight"] for w in says.weights],
        [w["tasks.sex.head.weight"] for w in says.weights],
    ]
    assert [torch.equal(one, other) for one, other in zip(heads[0], heads[0][1:], strict=False)] == [
        *(False, False, False),
        *(True, True),
    ]
    assert not any(torch.equal(one, other) for one, other in zip(heads[1], heads[1][1:], strict=False))
    assert all("val/loss/rings" in keys for keys in says.validated)
    assert module.off == frozenset()  # outside training nothing is


def test_the_run_stops_once_all_have_ended(tmp_path: Path) -> None:
    said = {key: [1.0] * 9 for key in SAID} | {"val/loss/sex": [3.0, 2.0, *[2.0] * 7]}
    _, trainer = trained(tmp_path, *KEYS, "trainer.max_epochs=9", first=Says(said))
    assert trainer.current_epoch == 4
    # Resumed it stays ended; with more patience it continues.
    last = tmp_path / "checkpoints" / "last.ckpt"
    _, trainer = trained(tmp_path / "again", *KEYS, "trainer.max_epochs=9", first=Says(said), resume=last)
    assert trainer.global_step == 16
    more = [*KEYS, "callbacks.per_task.patience=3", "trainer.max_epochs=9"]
    _, trainer = trained(tmp_path / "more", *more, first=Says(said), resume=last)
    assert trainer.current_epoch == 5


def test_a_run_resumes_bit_for_bit_with_what_was_kept(tmp_path: Path) -> None:
    keys = [*KEYS, "weighting=upgrad", "trainer.max_epochs=6"]
    whole, _ = trained(tmp_path / "whole", *keys, first=Says())
    trained(tmp_path / "first", *keys, "trainer.max_steps=18", first=Says())
    rest, _ = trained(
        tmp_path / "rest", *keys, first=Says(), resume=tmp_path / "first" / "checkpoints" / "last.ckpt"
    )
    for (name, one), other in zip(whole.named_parameters(), rest.parameters(), strict=True):
        assert torch.equal(one, other), name
    for task in ("sex", "rings", "shell_weight"):
        one, other = (kept(tmp_path / run, task) for run in ("whole", "rest"))
        assert one["global_step"] == other["global_step"]
        assert all(
            torch.equal(value, other["state_dict"][name])
            for name, value in one["state_dict"].items()
            if isinstance(value, Tensor)
        )
    (tmp_path / "first" / "checkpoints" / "best_rings.ckpt").unlink()
    with pytest.raises(
        ConfigError, match=r"whose best weights, of step 8, are no longer in .*best_rings\.ckpt"
    ):
        trained(tmp_path / "x", *keys, resume=tmp_path / "first" / "checkpoints" / "last.ckpt")


def test_validation_in_mid_epoch_and_more_of_a_metric(tmp_path: Path) -> None:
    says = Says({"val/sex/accuracy": [0.5], "val/loss/rings": [1.0], "val/loss/shell_weight": [1.0]})
    keys = [
        *KEYS,
        "callbacks.per_task.metrics={sex:accuracy}",
        "trainer.val_check_interval=2",
        "trainer.max_epochs=1",
    ]
    trained(tmp_path, *keys, first=says)
    assert kept(tmp_path, "sex")["global_step"] == 2
    # The second of two equal values is no improvement.
    for name, value in says.weights[0].items():
        assert torch.equal(kept(tmp_path, "sex")["state_dict"][name], value)


def test_what_cannot_be_watched_is_refused(tmp_path: Path) -> None:
    module = build(UPGrad())
    module.tasks["t0"].metrics["nothing"] = nn.Identity()
    for keys, message in [
        (
            {"metric": "accuracy"},
            r"^callbacks\.per_task\.metric=accuracy is not a metric of the task t0; .*loss",
        ),
        ({"metrics": {"t1": "x"}}, r"^callbacks\.per_task\.metrics\.t1=x is not a metric of the task t1"),
        ({"metrics": {"t9": "loss"}}, r"^callbacks\.per_task\.metrics\.t9: there is no task 't9'"),
        ({"patience": 0}, r"patience=0 must be at least 1, or null"),
        ({"min_delta": -1}, r"min_delta=-1 must be at least 0"),
    ]:
        with pytest.raises(ConfigError, match=message):
            PerTask(**keys).check(module)
    with pytest.raises(ConfigError, match=r"^callbacks\.per_task needs validation, and there is none"):
        trained(tmp_path, *KEYS, "trainer.limit_val_batches=0", "selection.metric=null")
    with pytest.raises(
        ConfigError, match=r"^callbacks\.per_task saves weights through callbacks\.checkpoint"
    ):
        trained(tmp_path, *KEYS, "callbacks.checkpoint=null", "selection.metric=null")
