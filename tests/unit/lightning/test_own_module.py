"""A MultiLossModule in a user's script: any Trainer and batch, its own optimizer, schedule and validation."""

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, IterableDataset
from torchjd.aggregation import ConFIG

from multitask import Combiner, MultiLossModule
from multitask.data.batches import examples_in, halves, tensors_of
from multitask.weighting.adapter import adapt
from tests.conftest import arrays
from tests.unit.weighting.members import make

TASKS, BATCH = 3, 8
WEIGHTINGS = ["weighted_sum", "imtl_l", "gls", "dwa", "famo", "upgrad", "pcgrad", "modo", "config of torchjd"]
Batch = dict[str, Tensor]


def combiner(name: str) -> Combiner:
    return adapt(ConFIG()) if name == "config of torchjd" else make(name, TASKS).double()


class Small(MultiLossModule):
    """Three losses; ``absent`` omits those without labels in a batch, ``counted`` returns their counts."""

    def __init__(self, weighting: Combiner, absent: bool = False, counted: bool = False) -> None:
        super().__init__(weighting=weighting, names=[f"t{i}" for i in range(TASKS)])
        torch.manual_seed(0)
        self.absent, self.counted = absent, counted
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.heads = nn.ModuleDict({f"t{i}": nn.Linear(6, 2) for i in range(TASKS)})
        self.double()

    def losses(self, batch: Batch) -> Any:
        features = self.trunk(batch["inputs"])
        found: dict[str, Any] = {}
        for name, head in self.heads.items():
            known = batch[name].isfinite().all(1)
            if self.absent and not known.any():
                continue
            loss = mse_loss(head(features)[known], batch[name][known])
            found[name] = (loss, known.sum()) if self.counted else loss
        return found

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        schedule = OneCycleLR(optimizer, 0.05, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def data(count: int = 7 * BATCH) -> Batch:
    return arrays(TASKS, count=count)


def loader(
    values: Batch, size: int = BATCH, made: Callable[[Batch], Any] = dict, **options: Any
) -> DataLoader:
    rows = [{key: v[i] for key, v in values.items()} for i in range(len(values["inputs"]))]
    return DataLoader(rows, size, collate_fn=lambda some: made(_stacked(some)), **options)


def _stacked(rows: list[Batch]) -> Batch:
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def trainer(epochs: int = 2, **keys: Any) -> Trainer:
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    keys = {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5, "logger": False, **quiet, **keys}
    return Trainer(accelerator="cpu", max_epochs=epochs, **keys)


def state(module: MultiLossModule) -> dict[str, Tensor]:
    return {
        key: v.detach().clone().nan_to_num()
        for key, v in module.state_dict().items()
        if isinstance(v, Tensor)
    }


def assert_bits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def assert_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-8, msg=key)


@pytest.mark.smoke("weighted_sum", "upgrad", "modo")
@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_resume_from_a_checkpoint_of_the_trainer(name: str, tmp_path: Path) -> None:
    """Two epochs and two resumed ones equal four bit for bit, even if a loss is absent from some batches."""
    values = data()
    values["t1"][: 2 * BATCH] = torch.nan
    whole, first, second = (Small(combiner(name), absent=True) for _ in range(3))
    keep = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    trainer(4, callbacks=[keep], enable_checkpointing=True).fit(whole, loader(values))
    # The schedule spans four epochs, whenever the run stops.
    trainer(4, callbacks=[StopAfter(2), keep], enable_checkpointing=True).fit(first, loader(values))
    trainer(4).fit(second, loader(values), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert_bits(state(second), state(whole))
    assert second.step.steps == whole.step.steps == 4 * 3


class StopAfter(Callback):
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.should_stop = trainer.current_epoch + 1 == self.epochs


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_micro_batches_equal_one_batch_if_losses_are_absent(name: str, counted: bool) -> None:
    values = data(6 * BATCH)
    values["t1"][BATCH : 2 * BATCH] = torch.nan
    values["t2"][-2 * BATCH :] = torch.nan
    if counted:
        values["t0"][::3] = torch.nan
    whole, parts = (Small(combiner(name), absent=True, counted=True) for _ in range(2))
    parts.counted = counted
    trainer(accumulate_grad_batches=1).fit(whole, loader(values, 3 * BATCH))
    trainer(accumulate_grad_batches=3).fit(parts, loader(values))
    assert_close(state(parts), state(whole))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_head_of_an_absent_loss_is_unchanged(name: str, accumulate: int) -> None:

    values = data(4 * BATCH)
    values["t1"][:] = torch.nan
    module = Small(combiner(name), absent=True)
    before = state(module)
    trainer(1, accumulate_grad_batches=accumulate).fit(module, loader(values))
    after = state(module)
    assert torch.equal(after["heads.t1.weight"], before["heads.t1.weight"])
    assert not torch.equal(after["heads.t0.weight"], before["heads.t0.weight"])
    assert all(value.isfinite().all() for value in after.values())


def test_a_loss_absent_from_the_first_batch_must_be_named() -> None:
    values = data()
    values["t1"][:BATCH] = torch.nan
    module = Small(combiner("upgrad"), absent=True)
    module.names = []
    with pytest.raises(
        ValueError, match=r"^losses returned t1, but the losses are t0, t2, [^\n]* pass names="
    ):
        trainer().fit(module, loader(values))


@pytest.mark.parametrize("name", ["weighted_sum", "imtl_l", "upgrad", "modo", "config of torchjd"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_precisions_agree_to_their_rounding(name: str, precision: str) -> None:
    found = {}
    for chosen in ("32-true", precision):
        module = Small(combiner(name).float()).float()
        values = {key: v.float() for key, v in data().items()}
        trainer(1, precision=chosen, gradient_clip_val=0.05).fit(module, loader(values))
        found[chosen] = state(module)
    start = state(Small(combiner(name).float()).float())
    exact = found["32-true"]
    of_model = [key for key in exact if not key.startswith("weighting")]
    moved = sum(float((exact[key] - start[key]).norm()) for key in of_model)
    assert sum(float((found[precision][key] - exact[key]).norm()) for key in of_model) < 0.2 * moved


class Stream(IterableDataset):
    """A data set of unknown length."""

    def __iter__(self) -> Iterator[Batch]:
        values = data()
        return iter([{key: v[i] for key, v in values.items()} for i in range(len(values["inputs"]))])


@pytest.mark.parametrize("name", ["weighted_sum", "upgrad"])
def test_a_stream_of_unknown_length(name: str) -> None:
    class Constant(Small):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.05)

    listed, streamed = Constant(combiner(name)), Constant(combiner(name))
    trainer().fit(listed, loader(data()))
    trainer().fit(streamed, DataLoader(Stream(), BATCH, collate_fn=_stacked))
    assert_bits(state(streamed), state(listed))


Pair = namedtuple("Pair", ["labels", "inputs"])


@dataclass(slots=True)
class Slots:
    inputs: Tensor
    labels: dict[str, Tensor]
    note: str = "a note"


class Plain:
    def __init__(self, inputs: Tensor, labels: list[Tensor]) -> None:
        self.inputs, self.labels, self.device = inputs, labels, torch.device("cpu")


def _labels(batch: Batch) -> dict[str, Tensor]:
    return {name: v for name, v in batch.items() if name != "inputs"}


NESTINGS: dict[str, tuple[Callable[[Batch], Any], Callable[[Any], Batch]]] = {
    "mapping": (
        lambda b: {"x": {"inputs": b["inputs"]}, "y": {"z": _labels(b)}},
        lambda b: {"inputs": b["x"]["inputs"], **b["y"]["z"]},
    ),
    "tuple": (
        lambda b: (b["inputs"], tuple(_labels(b).values())),
        lambda b: {"inputs": b[0], **{f"t{i}": v for i, v in enumerate(b[1])}},
    ),
    "list": (
        lambda b: [b["inputs"], [*_labels(b).values()], "text", 3],
        lambda b: {"inputs": b[0], **{f"t{i}": v for i, v in enumerate(b[1])}},
    ),
    "named tuple": (lambda b: Pair(_labels(b), b["inputs"]), lambda b: {"inputs": b.inputs, **b.labels}),
    "dataclass": (lambda b: Slots(b["inputs"], _labels(b)), lambda b: {"inputs": b.inputs, **b.labels}),
    "object": (
        lambda b: Plain(b["inputs"], [*_labels(b).values()]),
        lambda b: {"inputs": b.inputs, **{f"t{i}": v for i, v in enumerate(b.labels)}},
    ),
}


class Nested(Small):
    read: Callable[[Any], Batch]

    def losses(self, batch: Any) -> Any:
        return super().losses(type(self).read(batch))


@pytest.mark.smoke(*(f"upgrad-{nesting}" for nesting in NESTINGS))
@pytest.mark.slow
@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("name", ["weighted_sum", "upgrad", "modo"])
def test_batches_of_any_nesting(name: str, nesting: str) -> None:
    """Counts, halves and validation read nested batches, also a last batch of a single example."""
    values = data(4 * BATCH + 1)
    made, read = NESTINGS[nesting]
    plain, nested = (
        Small(combiner(name)),
        type("Read", (Nested,), {"read": staticmethod(read)})(combiner(name)),
    )
    runs = [trainer(), trainer()]
    runs[0].fit(plain, loader(values), loader(values))
    runs[1].fit(nested, loader(values, made=made), loader(values, made=made))
    assert_bits(state(nested), state(plain))
    assert runs[0].callback_metrics == runs[1].callback_metrics
    assert plain.step.steps == runs[1].global_step == 2 * 2
    runs[1].test(nested, loader(values, made=made), verbose=False)
    assert runs[1].global_step == 2 * 2


@pytest.mark.parametrize("nesting", NESTINGS)
def test_halves_have_the_type_of_the_batch(nesting: str) -> None:
    made, read = NESTINGS[nesting]
    values = data(5)
    batch = made(values)
    even, odd = halves(batch)
    assert type(even) is type(batch)
    assert [examples_in(part) for part in (batch, even, odd)] == [5, 3, 2]
    assert len(list(tensors_of(batch))) == 1 + TASKS
    assert_bits(read(even), {key: v[::2] for key, v in values.items()})
    assert_bits(read(odd), {key: v[1::2] for key, v in values.items()})
    assert_bits(read(batch), values)


def test_a_batch_without_tensors_needs_counts() -> None:
    class Numbers(Small):
        def losses(self, batch: list[float]) -> Any:
            return super().losses({key: v[: int(batch[0])] for key, v in data().items()})

    rows = DataLoader([8.0] * 6, 1, collate_fn=list)
    with pytest.raises(ValueError, match="let losses return \\(loss, count\\)"):
        trainer().fit(Numbers(combiner("upgrad")), rows)
    trainer().fit(Numbers(combiner("upgrad"), counted=True), rows)
    trainer(accumulate_grad_batches=1).fit(Numbers(combiner("upgrad")), rows)


class Validates(Small):
    """Has its own validation and logging."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_error", torch.tensor(float(self.current_epoch)))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        norms = [p.grad.norm() for p in self.parameters() if p.grad is not None]
        self.log("grad_norm", torch.stack(norms).norm())


@pytest.mark.parametrize("name", ["weighted_sum", "upgrad"])
def test_own_validation_and_logging(name: str, tmp_path: Path) -> None:
    module = Validates(combiner(name))
    best = ModelCheckpoint(tmp_path, monitor="val_error", filename="{epoch}")
    run = trainer(3, callbacks=[best], enable_checkpointing=True)
    run.fit(module, loader(data()), loader(data()))
    assert run.callback_metrics.keys() == {"val_error", "grad_norm"}
    assert Path(best.best_model_path).name == "epoch=0.ckpt"


@pytest.mark.parametrize("name", ["weighted_sum", "upgrad"])
def test_plateau_of_a_user_metric(name: str) -> None:
    """The metric gets worse in every epoch, so the learning rate is reduced from the second on."""

    class Plateau(Validates):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            schedule = ReduceLROnPlateau(optimizer, patience=0, factor=0.1)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_error"}}

    module = Plateau(combiner(name))
    run = trainer(3, accumulate_grad_batches=1)
    run.fit(module, loader(data()), loader(data()))
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-2)


HOOKS = ["on_before_optimizer_step", "on_train_epoch_end", "on_save_checkpoint", "training_step"]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_does_not_call_super_is_rejected(hook: str) -> None:
    def replaced(self: Any, *args: Any) -> None:
        """Do something else."""

    def extended(self: Any, *args: Any) -> None:
        getattr(super(Small, self), hook)(*args)

    for changed in (replaced, torch.no_grad()(replaced)):
        with pytest.raises(
            TypeError, match=rf"^Replaces\.{hook} overrides [^\n]* call super\(\)\.{hook}\(…\) in it\.$"
        ):
            type("Below", (type("Replaces", (Small,), {hook: changed}),), {})(combiner("upgrad"))
    for changed in (extended, torch.no_grad()(extended)):
        type("Extends", (Small,), {hook: changed})(combiner("upgrad"))


def test_multiple_optimizers_are_rejected() -> None:
    class Two(Small):
        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(part.parameters(), 0.1) for part in (self.trunk, self.heads)]

    with pytest.raises(RuntimeError, match="multiple optimizers"):
        trainer(gradient_clip_val=None, accumulate_grad_batches=1).fit(
            Two(combiner("upgrad")), loader(data())
        )


def test_a_failed_fit_restores_the_keys_of_the_trainer() -> None:
    class Fails(Small):
        def losses(self, batch: Batch) -> Any:
            raise RuntimeError("no losses")

    run = trainer()
    with pytest.raises(RuntimeError, match="no losses"):
        run.fit(Fails(combiner("upgrad")), loader(data()))
    assert (run.accumulate_grad_batches, run.gradient_clip_val) == (3, 0.5)
