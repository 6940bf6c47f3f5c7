"""A base class for LightningModules that train on several losses, by any weighting."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from multitask.data.batches import examples_in
from multitask.gradients.engines import make_engine
from multitask.gradients.finite import not_finite
from multitask.gradients.sharded import sharded_modules
from multitask.gradients.task_gradients import Engine
from multitask.gradients.window import Counts
from multitask.lightning.means import MeanLosses
from multitask.lightning.measured import MeasuredModule
from multitask.lightning.overrides import replaced_hook
from multitask.lightning.parts import LossAndCount, losses_of_halves
from multitask.lightning.schedulers import step_plateau_schedulers, step_schedulers
from multitask.lightning.sharding import shard, shards
from multitask.lightning.telemetry import Telemetry
from multitask.lightning.trainer_keys import TrainerKeys
from multitask.private import averages_statistics
from multitask.step import Step, StepResult
from multitask.weighting.adapter import adapt
from multitask.weighting.base import Combiner, JacobianMethod, Rows, Scalarization, hooks_of

Observer = Callable[[StepResult], None]


class MultiLossModule(MeasuredModule):
    """A LightningModule whose subclass defines :meth:`losses`; everything else remains its own.

    A scalarization trains by automatic optimization, a Jacobian method by manual optimization. Clipping,
    accumulation, precision, schedulers, several processes and resume go by the Trainer's own keys either way::

        class Mine(MultiLossModule):
            def __init__(self) -> None:
                super().__init__(weighting=UPGradWeighting())
                self.net = nn.Linear(8, 2)

            def losses(self, batch):
                out = self.net(batch["x"])
                return {"a": mse_loss(out[:, 0], batch["a"]), "b": mse_loss(out[:, 1], batch["b"])}

            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters())

    Args:
        options: As for :meth:`train_with`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.telemetry = Telemetry()
        self.observers: list[Observer] = []
        """Called with the result of each step, after the optimizer's step."""
        self.now: Callable[[], float] = time.perf_counter
        self.times: dict[str, float] = {}
        """Seconds spent in the sections of a step; whoever reads them clears them."""
        self.scheduler_options: dict[str, Any] = {}
        self._keys = TrainerKeys()
        self._window = 1
        self._step: Step | None = None
        self._resumed: dict[str, Any] | None = None
        self._batches: list[Any] = []
        self._result: StepResult | None = None
        self._mark = 0.0
        self._for_statistics = False
        self._optimizer: Callable[..., Optimizer] | None = None
        self._scheduler: Callable[[Optimizer], Any] | None = None
        self._manual: bool | None = None
        self._warned: set[str] = set()
        self.switchable = False
        """Whether a callback may switch losses off in the course of the run; it says so before the fit."""
        self._off: dict[str, frozenset[str]] = {}
        self.factors: dict[str, float] = {}
        """Factors of losses in training steps, by name; a loss that is not named has one."""
        if options:
            self.train_with(**options)

    def train_with(
        self,
        weighting: object,
        *,
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[[Optimizer], Any] | None = None,
        scheduler_options: Mapping[str, Any] | None = None,
        weighting_learning_rate: float | None = None,
        heads: str = "own",
        engine: str | Engine = "auto",
        shared: Iterable[nn.Parameter] | None = None,
        names: list[str] | None = None,
        manual: bool | None = None,
        seed: int = 0,
    ) -> None:
        """Choose how the losses are combined.

        Args:
            weighting: A combiner of this package, or a torchjd scalarizer, weighting or aggregator.
            optimizer: Parameter groups → optimizer; not needed where the subclass defines ``configure_optimizers``.
            scheduler: Optimizer → scheduler, or ``None``.
            scheduler_options: ``interval``, ``frequency`` and ``monitor`` as Lightning names them.
            weighting_learning_rate: Learning rate of the weighting's own parameters, ``None`` for the optimizer's.
            heads: As for :class:`multitask.Step`.
            engine: As for :class:`multitask.Step`.
            shared: As for :class:`multitask.Step`.
            names: The losses' names in the weighting's order.
            manual: Whether to optimize by hand; by default as far as the weighting or accumulation needs it.
            seed: Seed of the weighting's random numbers.

        Raises:
            TypeError: If the class replaces a hook that it may only extend.
        """
        if complaint := replaced_hook(type(self), MultiLossModule):
            raise TypeError(complaint)
        self.weighting: Combiner = adapt(weighting)
        self._optimizer, self._scheduler = optimizer, scheduler
        self.scheduler_options = dict(scheduler_options or {})
        self._weighting_learning_rate = weighting_learning_rate
        self.engine = make_engine(engine)
        self._step_options: dict[str, Any] = {
            "heads": heads,
            "engine": self.engine,
            "shared": shared,
            "seed": seed,
        }
        self._manual = manual
        self._step = None
        if names is not None:
            self.names = list(names)
        self.automatic_optimization = not self.by_hand(1)

    def losses(self, batch: Any) -> Mapping[str, LossAndCount]:
        """Return the mean losses of a batch by name, each alone or with the number of elements it is over.

        A loss that the batch has no label for is left out, or has a count of zero.
        """
        raise NotImplementedError(f"{type(self).__name__} must define losses(batch) -> {{name: loss}}.")

    def losses_by_part(self, batch: Any, rows: Rows) -> Mapping[str, LossAndCount]:
        """Return losses of halves, ``[2]``, or of examples, ``[batch]``, for the weightings that want them.

        By default the halves are two batches that the model sees apart.

        Raises:
            ValueError: If the weighting wants losses of examples, and the subclass does not define them.
        """
        if rows == "example":
            raise ValueError(
                "the weighting wants the losses of single examples; define losses_by_part in "
                f"{type(self).__name__}, or choose another weighting."
            )
        return losses_of_halves(self.losses, batch)

    def traces(self, batch: Any) -> Mapping[str, LossAndCount]:
        """Return, for ``ntk``, each loss's trace of the neural tangent kernel of its residuals, as :meth:`losses`.

        Of a loss that is the mean of squares of residuals it is the mean of their gradients' squared norms.

        Raises:
            ValueError: If the subclass does not define it.
        """
        raise ValueError(
            f"the weighting wants the traces of the residuals' kernel; define traces in {type(self).__name__}, or "
            "choose another weighting."
        )

    @property
    def step(self) -> Step:
        """The step, made when it is first needed."""
        if self._step is None:
            named = {n: p for n, p in self.named_parameters() if not n.startswith("weighting.")}
            self._step = Step(self.weighting, named, sharded=self, **self._step_options)
            self._step.now, self._step.times = self.now, self.times
            if self._resumed is not None:
                self._step.load_state_dict({"ownership": self._step.ownership.state_dict(), **self._resumed})
                self._resumed = None
        return self._step

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.trainer.world_size if self._trainer else 1

    @property
    def window(self) -> int:
        """How many batches an optimizer step takes."""
        if self.automatic_optimization:
            return int(self.trainer.accumulate_grad_batches) if self._trainer else 1
        return self._window

    @property
    def has_no_gramian(self) -> bool:
        """Whether a step leaves no Gramian of all losses' gradients."""
        return self.needs_no_gramian or "wants" in hooks_of(self.weighting)

    @property
    def needs_no_gramian(self) -> bool:
        """Whether a step comes without the Gramian of the losses' gradients."""
        return isinstance(self.weighting, Scalarization) and (
            self.automatic_optimization or self.weighting.linear
        )

    def by_hand(self, accumulate: int) -> bool:
        """Return whether optimization is manual, with so many micro-batches per step.

        Automatic optimization adds up the scalars of micro-batches, which is the scalar of the whole batch only
        where there is one micro-batch.
        """
        if isinstance(self.weighting, JacobianMethod) or (self._trainer and shards(self.trainer)):
            return True
        if self._manual is not None:
            return self._manual
        # The Trainer's own reduction over processes waits for parameters that an absent loss does not reach.
        return accumulate > 1 or (self.processes > 1 and self.can_be_absent)

    def modules_to_shard(self) -> Iterable[nn.Module]:
        """Return the modules that a Trainer with a ``ModelParallelStrategy`` shards: those that have a ``forward``."""
        return [child for name, child in self.named_children() if name != "weighting"]

    def configure_model(self) -> None:
        """Shard the model, where the Trainer's strategy wants that; a subclass may shard it otherwise."""
        if shards(self.trainer) and not sharded_modules(self):
            assert self.device_mesh is not None
            shard(self.modules_to_shard(), self.device_mesh["data_parallel"])
            self._step = None

    def configure_callbacks(self) -> list[Callback]:
        """Take over the Trainer's keys that Lightning refuses under manual optimization."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            return []
        if not hasattr(self, "weighting"):
            raise ValueError(f"{type(self).__name__} has no weighting; pass weighting= to its base class.")
        self.automatic_optimization = not self.by_hand(self.trainer.accumulate_grad_batches)
        if self.automatic_optimization:
            return []
        self._keys = TrainerKeys()
        self._keys.take(self.trainer)
        self._window = self._keys.accumulate_grad_batches
        return [self._keys]

    @property
    def _rows(self) -> Rows:
        """The unit of a row of the weighting: each task, or its loss on each half of a batch or each example."""
        return self.weighting.rows if isinstance(self.weighting, JacobianMethod) else "task"

    def named_losses(self, batch: Any) -> tuple[dict[str, Tensor], Counts]:
        """Return the losses of a batch in the order of :attr:`names`, and their counts, as a step takes them."""
        rows = self._rows
        return self._in_order(
            batch, self.losses(batch) if rows == "task" else self.losses_by_part(batch, rows)
        )

    def _in_order(self, batch: Any, given: Mapping[str, LossAndCount]) -> tuple[dict[str, Tensor], Counts]:
        found = self._listed(given)
        if not self.names:
            self.names = self._names_anywhere(found)
        if training := self._trainer is not None and self.trainer.training:
            found = {name: own for name, own in found.items() if name not in self.off}
        unknown = [name for name in found if name not in self.names]
        if unknown or not found:
            raise ValueError(
                f"losses gave {', '.join(unknown) or 'nothing'}, and the losses are {', '.join(self.names)}, as the "
                f"first batch or names= has them; pass names= with all of them to {type(self).__name__}'s base class."
            )
        like = next(iter(found.values()))[0].detach()
        absent = (torch.zeros_like(like), torch.zeros(len(like)) if like.ndim else 0.0)
        losses = {name: found.get(name, absent)[0] for name in self.names}
        if training and self.factors:
            losses = {name: loss * self.factors.get(name, 1.0) for name, loss in losses.items()}
        counts = {name: found.get(name, absent)[1] for name in self.names}
        known = [count is not None for count in counts.values()]
        whole = self.window == 1 and self.processes == 1
        if whole and not any(known):
            return losses, None
        default = None if all(known) else self.examples(batch)
        # Throughout a step, and on all processes, counts are one number, or else one per loss.
        if not any(known) and not self.can_be_absent:
            return losses, default
        return losses, {name: default if c is None else c for name, c in counts.items()}  # type: ignore[misc]

    def _names_anywhere(self, found: Iterable[str]) -> list[str]:
        """Return the names of the first batch's losses on all processes."""
        each: list[Any] = [list(found)]
        if self.processes > 1:
            each = [None] * self.processes
            dist.all_gather_object(each, list(found))
        return list(dict.fromkeys(name for names in each for name in names))

    @staticmethod
    def _listed(losses: Mapping[str, LossAndCount]) -> dict[str, tuple[Tensor, float | Tensor | None]]:
        return {name: loss if isinstance(loss, tuple) else (loss, None) for name, loss in losses.items()}

    def examples(self, batch: Any) -> float:
        """Return how many examples a batch has: what a loss that comes alone is over.

        Raises:
            ValueError: If it has no tensor, and there is another batch to weight it against.
        """
        count = examples_in(batch)
        if count is None:
            if self.window > 1 or self.processes > 1:
                raise ValueError(
                    "the batch has no tensor from which its number of examples could be read; let losses return "
                    "(loss, count)."
                )
            return 1.0
        return float(count)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Return the scalar to minimize, or take a step by hand."""
        if self.automatic_optimization:
            self._batches, start = [batch], self.now()
            losses, counts = self.named_losses(batch)
            scalar = self.step.scalarize(losses, counts)
            self._spent("forward", start)
            if scalar is None and getattr(self.trainer.precision_plugin, "scaler", None) is None:
                # Without a label nothing has a gradient; an optimizer with a closure wants a number all the same.
                return torch.zeros((), device=self.device, requires_grad=True)
            return scalar
        self._step_by_hand(batch, batch_idx)
        return None

    def _spent(self, section: str, start: float) -> None:
        self.times[section] = self.times.get(section, 0.0) + self.now() - start

    def on_before_backward(self, loss: Tensor) -> None:
        """Begin the backward pass of automatic optimization."""
        self._mark = self.now()

    def on_after_backward(self) -> None:
        """End the backward pass of automatic optimization."""
        self._spent("task gradients", self._mark)

    def _step_by_hand(self, batch: Any, batch_idx: int) -> None:
        trainer = self.trainer
        if self._for_statistics:
            # Lightning's SWA passes the data once more, for the running statistics of the averaged weights.
            with torch.no_grad(), self._graph():
                self.named_losses(batch)
            return
        step = self.step
        step.scaler = getattr(trainer.precision_plugin, "scaler", None)
        start = self.now()
        losses, counts = self.named_losses(batch)
        self._spent("forward", start)
        if step.looks_after:
            self._batches.append(batch)
        if (batch_idx + 1) % self.window and not trainer.is_last_batch:
            step.add(losses, counts)
            return
        result = step.backward(losses, counts)
        self._result = result
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)  # Lightning has refused several
        if result.present:
            start = self.now()
            optimizer.step(_filled_once(optimizer.optimizer))
            self._spent("optimizer", start)
            if step.looks_after and not result.overflow:
                self._after_step(result)
        optimizer.zero_grad()
        self._batches = []
        if trainer.lr_scheduler_configs:
            step_schedulers(self, batch_idx)

    def _report(self) -> None:
        """Keep what happened in a step for the loggers, and show it to who watches."""
        result, self._result = self._result, None
        if result is None:
            return
        self.record_labelled(result.present)
        if result.losses is None or result.overflow:
            return
        k = len(result.present)
        losses, weights = result.losses, result.weights
        # Rows of one loss are averaged, their weights added up.
        losses = losses.view(-1, k).mean(0)
        self.telemetry.add("train/loss", losses, self.names, result.present)
        if weights is not None:
            self.telemetry.add("weight", weights.detach().view(-1, k).sum(0), self.names, result.present)
        for observer in self.observers:
            observer(result)

    @property
    def labels_can_be_missing(self) -> bool:
        """Whether a loss can be absent from a batch: the loggers then get the share of steps that had it.

        Of losses that are always there a linear scalarization needs one backward pass per micro-batch, in place of
        one per loss: a subclass whose losses are may return ``False``.
        """
        return True

    @property
    def can_be_absent(self) -> bool:
        """Whether a loss can be absent from a step, for want of labels or because a callback switched it off."""
        return self.labels_can_be_missing or self.switchable

    @property
    def off(self) -> frozenset[str]:
        """The losses that are switched off: absent from training steps, and measured all the same."""
        training = self._off and self._trainer is not None and self.trainer.training
        return frozenset().union(*self._off.values()) if training else frozenset()

    def switch_off(self, by: str, names: Iterable[str]) -> None:
        """Leave losses out of training steps until the same callback says otherwise.

        Args:
            by: Who does; a loss takes part if nobody has switched it off.
            names: All losses that are off from now on.
        """
        self._off[by] = frozenset(names)

    def record_labelled(self, present: list[int]) -> None:
        """Keep for the loggers which losses were present in a step."""
        if self.can_be_absent:
            labelled = torch.zeros(len(self.names))
            labelled[present] = 1.0
            self.telemetry.add("train/labelled", labelled, self.names)

    def _after_step(self, result: StepResult) -> None:
        batches, traces = self._batches, self.weighting.recomputed == "traces"

        def recompute() -> Tensor:
            mean = MeanLosses()
            for batch in batches:
                with self._graph():
                    found = self._in_order(batch, self.traces(batch)) if traces else self.named_losses(batch)
                mean.add(*found)
            whole = mean.over_processes()
            if not whole[result.present].isfinite().all():
                raise not_finite(whole, self.names, self.trainer.global_step)
            return whole

        self.step.after_step(recompute, result.present)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Stop at a loss that is not finite; clip the combined, unscaled gradient."""
        if not self.automatic_optimization:
            if self._keys.clips:
                self._keys.clip(self, optimizer)
        elif self.step.is_open:
            self.step.check()
            self._mark = self.now()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the weighting see the losses before and after the step (automatic optimization).

        However often the optimizer evaluates the losses, it is one step of the weighting.
        """
        self.step.discard()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler and self.automatic_optimization else 0.0
        super().optimizer_step(*args, **kwargs)
        if self.automatic_optimization:
            self._spent("optimizer", self._mark)
            if self.step.is_open:
                self._result = self.step.close()
        # A loss scaler that lowers its scale has met an overflow, and skipped the step.
        skipped = scaler is not None and scaler.get_scale() < scale
        if self.automatic_optimization and not skipped and self._result is not None:
            self._after_step(self._result)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Step schedulers that watch a metric by steps: after the validation of the batch before."""
        self._for_statistics = averages_statistics(self.trainer)
        if batch_idx and batch_idx % self.window == 0:
            step_plateau_schedulers(self, "step", batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep what happened in the step, and hand it to the loggers every so many steps."""
        self._report()
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.trainer.global_step % every == 0 or self.trainer.is_last_batch:
            self.telemetry.flush(self)

    def on_train_epoch_end(self) -> None:
        """Close the weighting's epoch and step schedulers that watch a metric, unless it was cut short."""
        if not self.trainer.is_last_batch:
            return
        self.weighting.on_epoch_end()
        step_plateau_schedulers(self, "step", self.trainer.fit_loop.batch_idx + 1)
        step_plateau_schedulers(self, "epoch", self.current_epoch + 1)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler; those that watch a metric are stepped before the checkpoint instead."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a resumed run needs beside the weights."""
        state = self.step.state_dict()
        del state["weighting"]  # among the weights
        checkpoint["multitask"] = {
            "step": state,
            "names": self.names,
            "telemetry": self.telemetry.state_dict(),
            "validated": self.validated,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume with the losses that no logger has received yet, and with the last validation."""
        state = checkpoint.get("multitask") or _before(checkpoint)
        if state is None:
            return
        self.telemetry.load_state_dict(state["telemetry"])
        self.validated, self.names = state["validated"], list(state["names"] or self.names)
        self._step, self._resumed = None, state["step"]

    def warn_once(self, key: str, sentence: str) -> None:
        """Print a warning about a key of the config, the first time that there is one."""
        if key not in self._warned and self.trainer.is_global_zero:
            print(f"warning: {key}{sentence}", file=sys.stderr)
        self._warned.add(key)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Put the model's and the weighting's own parameters into one optimizer.

        Raises:
            ValueError: If there is no optimizer.
        """
        if self._optimizer is None:
            raise ValueError(
                f"{type(self).__name__} has no optimizer; pass optimizer= to its base class, or define "
                "configure_optimizers."
            )
        own = list(self.weighting.parameters())
        # Integers, as in a quantized encoder, take no step.
        model = [p for p in self.parameters() if _is_real(p) and not any(p is other for other in own)]
        groups: list[dict[str, Any]] = [{"params": model}]
        if own:
            rate = self._weighting_learning_rate
            groups.append({"params": own, "weight_decay": 0.0} | ({} if rate is None else {"lr": rate}))
        optimizer = self._optimizer(groups)
        if self._scheduler is None:
            return optimizer
        options = {key: self.scheduler_options.get(key, default) for key, default in _SCHEDULER.items()}
        if self.automatic_optimization:
            # step_plateau_schedulers steps them, in time for the checkpoint.
            options["reduce_on_plateau"] = False
        return {  # type: ignore[return-value]
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._scheduler(optimizer), **options},
        }


def _before(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state in a checkpoint of 0.1, which lies at its top; what is shared is found again from the graph."""
    if "telemetry" not in checkpoint:
        return None
    return {
        "step": {"steps": checkpoint["global_step"]},
        "names": [],
        **{key: checkpoint[key] for key in ("telemetry", "validated")},
    }


def _filled_once(optimizer: Optimizer) -> Callable[[], None]:
    """Return the empty closure of a step whose gradients are filled, for one call.

    An optimizer that calls it again wants the gradients somewhere else, and would train without any.
    """
    asked = False

    def closure() -> None:
        nonlocal asked
        if asked:
            raise MisconfigurationException(
                f"{type(optimizer).__name__} computes the loss several times in a step, and a "
                "step by hand fills the gradients once; choose another optimizer, or a scalarization without "
                "accumulation."
            )
        asked = True

    return closure


def _is_real(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


_SCHEDULER = {"interval": "epoch", "frequency": 1}
