"""A plain loop, a user's LightningModule and the template give bit-identical results."""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import OneCycleLR
from torchjd.aggregation import ConFIG

from multitask import Combiner, JacobianMethod, MultiLossModule, Step
from multitask.module import MultiTaskModule
from multitask.weighting.adapter import adapt
from tests.conftest import Arrays, arrays, regression
from tests.unit.weighting.members import make

TASKS = 3
BATCH, BATCHES, EPOCHS, CLIP, RATE = 8, 4, 2, 0.5, 0.05
WEIGHTINGS = ["weighted_sum", "imtl_l", "dwa", "famo", "upgrad", "pcgrad", "modo", "config of torchjd"]
Batch = dict[str, Tensor]


class Net(nn.Module):
    """A trunk and heads, with losses over the labelled examples."""

    def __init__(self, missing: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.missing = missing
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())
        self.heads = nn.ModuleDict({f"t{i}": nn.Linear(4, 2) for i in range(TASKS)})

    def losses(self, batch: Batch, parts: int = 1) -> tuple[dict[str, Tensor], Any]:
        """Return the mean losses of the batch or of its interleaved parts, and their counts, or the common count."""
        features = self.trunk(batch["inputs"])
        if parts == 1 and not self.missing:
            losses = {name: mse_loss(head(features), batch[name]) for name, head in self.heads.items()}
            return losses, len(features)
        part = torch.arange(len(features)) % parts
        losses, counts = {}, {}
        for name, head in self.heads.items():
            known = [(part == i) & batch[name].isfinite().all(1) for i in range(parts)]
            prediction = head(features)
            each = torch.stack([mse_loss(prediction[rows], batch[name][rows]) for rows in known])
            count = torch.stack([rows.sum() for rows in known])
            losses[name], counts[name] = (each, count) if parts > 1 else (each[0], count[0])
        return losses, counts


def combiner(name: str) -> Combiner:
    return adapt(ConFIG()) if name == "config of torchjd" else make(name, TASKS).float()


def steps_of(data: Batch, accumulate: int) -> int:
    batches = -(-len(data["inputs"]) // BATCH)
    return EPOCHS * -(-batches // accumulate)


def optimizer_of(net: nn.Module, weighting: Combiner) -> torch.optim.Optimizer:
    own = list(weighting.parameters())
    groups = [{"params": list(net.parameters())}, *([{"params": own, "weight_decay": 0.0}] if own else [])]
    return torch.optim.Adam(groups, lr=RATE)


def in_a_loop(name: str, data: Batch, accumulate: int, missing: bool) -> Batch:
    net, weighting = Net(missing), combiner(name)
    parts = 2 if isinstance(weighting, JacobianMethod) and weighting.rows == "half" else 1
    step, optimizer = Step(weighting, net), optimizer_of(net, weighting)
    schedule = OneCycleLR(optimizer, RATE, steps_of(data, accumulate))
    batches = [{key: v[i : i + BATCH] for key, v in data.items()} for i in range(0, len(data["t0"]), BATCH)]
    for _ in range(EPOCHS):
        for first in range(0, len(batches), accumulate):
            *before, last = window = batches[first : first + accumulate]
            for batch in before:
                step.add(*net.losses(batch, parts))
            result = step.backward(*net.losses(last, parts))
            nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], CLIP)
            optimizer.step()
            optimizer.zero_grad()
            step.after_step(partial(mean_losses, net, window), result.present)
            schedule.step()
        weighting.on_epoch_end()
    return state(net, weighting)


def mean_losses(net: Net, batches: list[Batch]) -> Tensor:
    """Return the mean losses of several batches, in double precision."""
    sums, totals = torch.zeros(TASKS, dtype=torch.float64), torch.zeros(TASKS, dtype=torch.float64)
    for batch in batches:
        losses, counts = net.losses(batch)
        counted = (
            torch.stack(list(counts.values())) if isinstance(counts, dict) else torch.full((TASKS,), counts)
        )
        sums += torch.stack(list(losses.values())).double() * counted
        totals += counted
    return sums / totals


class Own(MultiLossModule):
    def __init__(self, weighting: Combiner, missing: bool) -> None:
        super().__init__(weighting=weighting)
        self.net = Net(missing)

    @property
    def labels_can_be_missing(self) -> bool:
        return self.net.missing

    def losses(self, batch: Batch) -> Any:
        return self._with_counts(*self.net.losses(batch))

    def losses_by_part(self, batch: Batch, rows: str) -> Any:
        return self._with_counts(*self.net.losses(batch, 2))

    @staticmethod
    def _with_counts(losses: Batch, counts: Any) -> Any:
        return (
            {name: (loss, counts[name]) for name, loss in losses.items()}
            if isinstance(counts, dict)
            else losses
        )

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self.net, self.weighting)
        schedule = OneCycleLR(optimizer, RATE, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def in_a_user_module(name: str, data: Batch, accumulate: int, missing: bool) -> Batch:
    module = Own(combiner(name), missing)
    fit(module, data, accumulate)
    return state(module.net, module.weighting)


def in_the_template(name: str, data: Batch, accumulate: int, missing: bool) -> Batch:
    net = Net(missing)
    tasks = {task: regression(task, missing=missing) for task in net.heads}
    for task, head in net.heads.items():
        tasks[task].head = deepcopy(head)
    module = MultiTaskModule(
        deepcopy(net.trunk),
        tasks,
        weighting=combiner(name),
        optimizer=lambda groups: torch.optim.Adam(groups, lr=RATE),
        scheduler=lambda optimizer: OneCycleLR(optimizer, RATE, steps_of(data, accumulate)),
        # Lightning counts batches, even if a step takes several.
        scheduler_options={"interval": "step"},
    )
    fit(module, data, accumulate)
    net.trunk.load_state_dict(module.trunk.state_dict())
    for task, head in net.heads.items():
        head.load_state_dict(module.by_name[task].head.state_dict())
    return state(net, module.weighting)


def fit(module: MultiLossModule, data: Batch, accumulate: int) -> None:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=EPOCHS,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=CLIP,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, Arrays(data, batch_size=BATCH).train_dataloader())


def state(net: nn.Module, weighting: Combiner) -> Batch:
    own = {f"weighting.{key}": v for key, v in weighting.state_dict().items() if isinstance(v, Tensor)}
    return {key: v.detach().clone() for key, v in net.state_dict().items()} | own


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_three_ways(name: str, accumulate: int, missing: bool) -> None:
    """Adam with clipped gradients and a one-cycle schedule; the last step of an epoch has a single batch."""
    data = arrays(TASKS, count=BATCH * BATCHES, dtype=torch.float32)
    if missing:
        data["t1"][torch.arange(len(data["t1"])) % 5 < 2] = torch.nan
    expected = in_a_loop(name, data, accumulate, missing)
    start = state(Net(missing), combiner(name))
    assert all(
        not torch.equal(value, start[key]) for key, value in expected.items() if key.endswith(".weight")
    )
    for way in (in_a_user_module, in_the_template):
        found = way(name, data, accumulate, missing)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key].nan_to_num(), value.nan_to_num()), (way.__name__, key)
