"""Best weights and early stopping per task, and their resume."""

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
# The validation losses of each epoch: `rings` is best in its second one, `sex` improves throughout.
METRICS = {
    "val/loss/sex": [9.0, 8.0, 7.0, 6.0, 5.0, 4.0],
    "val/loss/rings": [5.0, 3.0, 3.0, 4.0, 1.0, 0.5],
    "val/loss/shell_weight": [5.0, 4.0, 4.5, 3.5, 3.5, 3.5],
}


class ReplacedMetrics(Callback):
    """Replaces the metrics of validation, and records the parameters of each epoch."""

    def __init__(self, metrics: dict[str, list[float]] = METRICS) -> None:
        self.metrics = metrics
        self.weights: list[dict[str, Tensor]] = []
        self.validated: list[set[str]] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.validated.append(set(pl_module.validated))
        pl_module.validated |= {key: values[trainer.current_epoch] for key, values in self.metrics.items()}
        self.weights.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})


def kept(folder: Path, task: str) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / f"best_{task}.ckpt", weights_only=True)


@pytest.mark.parametrize("method", ["weighted_sum", "upgrad"])
def test_a_stopped_task_is_frozen_and_its_best_weights_are_kept(tmp_path: Path, method: str) -> None:
    callback = ReplacedMetrics()
    keys = [*KEYS, f"weighting={method}", "trainer.max_epochs=6"]
    module, _ = trained(tmp_path, *keys, first=callback)
    for task, epoch in {"sex": 6, "rings": 2, "shell_weight": 4}.items():
        assert kept(tmp_path, task)["global_step"] == 4 * epoch
        for name, value in callback.weights[epoch - 1].items():
            assert torch.equal(kept(tmp_path, task)["state_dict"][name], value), name
    # `rings` stops at its fourth validation, although it would have improved.
    heads = [
        [w["tasks.rings.head.weight"] for w in callback.weights],
        [w["tasks.sex.head.weight"] for w in callback.weights],
    ]
    assert [torch.equal(one, other) for one, other in zip(heads[0], heads[0][1:], strict=False)] == [
        *(False, False, False),
        *(True, True),
    ]
    assert not any(torch.equal(one, other) for one, other in zip(heads[1], heads[1][1:], strict=False))
    assert all("val/loss/rings" in keys for keys in callback.validated)
    assert module.off == frozenset()  # no task is off outside training


def test_the_run_stops_once_all_tasks_have_stopped(tmp_path: Path) -> None:
    metrics = {key: [1.0] * 9 for key in METRICS} | {"val/loss/sex": [3.0, 2.0, *[2.0] * 7]}
    _, trainer = trained(tmp_path, *KEYS, "trainer.max_epochs=9", first=ReplacedMetrics(metrics))
    assert trainer.current_epoch == 4
    # A resumed run remains stopped; with more patience it continues.
    last = tmp_path / "checkpoints" / "last.ckpt"
    _, trainer = trained(
        tmp_path / "again", *KEYS, "trainer.max_epochs=9", first=ReplacedMetrics(metrics), resume=last
    )
    assert trainer.global_step == 16
    more = [*KEYS, "callbacks.per_task.patience=3", "trainer.max_epochs=9"]
    _, trainer = trained(tmp_path / "more", *more, first=ReplacedMetrics(metrics), resume=last)
    assert trainer.current_epoch == 5


def test_a_run_resumes_bit_for_bit_with_its_best_weights(tmp_path: Path) -> None:
    keys = [*KEYS, "weighting=upgrad", "trainer.max_epochs=6"]
    whole, _ = trained(tmp_path / "whole", *keys, first=ReplacedMetrics())
    trained(tmp_path / "first", *keys, "trainer.max_steps=18", first=ReplacedMetrics())
    rest, _ = trained(
        tmp_path / "rest",
        *keys,
        first=ReplacedMetrics(),
        resume=tmp_path / "first" / "checkpoints" / "last.ckpt",
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


def test_validation_in_mid_epoch_and_a_metric_to_maximize(tmp_path: Path) -> None:
    callback = ReplacedMetrics(
        {"val/sex/accuracy": [0.5], "val/loss/rings": [1.0], "val/loss/shell_weight": [1.0]}
    )
    keys = [
        *KEYS,
        "callbacks.per_task.metrics={sex:accuracy}",
        "trainer.val_check_interval=2",
        "trainer.max_epochs=1",
    ]
    trained(tmp_path, *keys, first=callback)
    assert kept(tmp_path, "sex")["global_step"] == 2
    # The second of two equal values is no improvement.
    for name, value in callback.weights[0].items():
        assert torch.equal(kept(tmp_path, "sex")["state_dict"][name], value)


def test_unknown_metrics_and_missing_validation_are_rejected(tmp_path: Path) -> None:
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
