"""A base class for LightningModules that train on several losses, by any weighting."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any, Literal

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
from multitask.gradients.losses import Counts
from multitask.gradients.sharded import sharded_modules
from multitask.gradients.task_gradients import Engine
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
    """Base class for LightningModules with several losses; a subclass defines :meth:`losses`.

    Scalarizations train by automatic optimization, Jacobian methods by manual optimization. In both cases the
    Trainer's arguments control clipping, accumulation, precision and processes, and schedulers and resuming work::

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
        options: See :meth:`train_with`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.telemetry = Telemetry()
        self.observers: list[Observer] = []
        """Called with the result of each step, after the optimizer's step."""
        self.now: Callable[[], float] = time.perf_counter
        self.times: dict[str, float] = {}
        """Seconds spent in each section of the steps; the reader clears them."""
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
        """Whether a callback may switch losses off during training; it sets this before the fit."""
        self._off: dict[str, frozenset[str]] = {}
        self.factors: dict[str, float] = {}
        """Factors of losses in training steps, by name; 1 by default."""
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
        heads: Literal["own", "weighted"] = "own",
        engine: str | Engine = "auto",
        memory: str = "rows",
        shared: Iterable[nn.Parameter] | None = None,
        names: list[str] | None = None,
        manual: bool | None = None,
        seed: int = 0,
    ) -> None:
        """Choose how the losses are combined.

        Args:
            weighting: A combiner, or a torchjd scalarizer, weighting or aggregator.
            optimizer: Parameter groups → optimizer; not needed if the subclass defines ``configure_optimizers``.
            scheduler: Optimizer → scheduler, or ``None``.
            scheduler_options: ``interval``, ``frequency`` and ``monitor`` as in Lightning.
            weighting_learning_rate: Learning rate of the weighting's own parameters; ``None`` for the optimizer's.
            heads, engine, memory, shared: See :class:`multitask.Step`.
            names: The losses' names in the weighting's order.
            manual: Whether to use manual optimization; by default only if weighting or accumulation need it.
            seed: Seed of the weighting's random numbers.

        Raises:
            TypeError: If the class overrides a hook without calling ``super()``.
        """
        if message := replaced_hook(type(self), MultiLossModule):
            raise TypeError(message)
        self.weighting: Combiner = adapt(weighting)
        self._optimizer, self._scheduler = optimizer, scheduler
        self.scheduler_options = dict(scheduler_options or {})
        self._weighting_learning_rate = weighting_learning_rate
        self.engine = make_engine(engine, memory)
        self._make_step = partial(Step, heads=heads, engine=self.engine, shared=shared, seed=seed)
        self._manual, self._step = manual, None
        if names is not None:
            self.names = list(names)
        self.automatic_optimization = not self.by_hand(1)

    def losses(self, batch: Any) -> Mapping[str, LossAndCount]:
        """Return the mean losses of a batch by name, each a tensor or a pair of tensor and count.

        Losses without labels in the batch are omitted, or have a count of zero.
        """
        raise NotImplementedError(f"{type(self).__name__} must define losses(batch) -> {{name: loss}}.")

    def losses_by_part(self, batch: Any, rows: Rows) -> Mapping[str, LossAndCount]:
        """Return losses of halves, ``[2]``, or of examples, ``[batch]``, for weightings that need them.

        By default, the losses of each half come from a separate forward pass. Raises ``ValueError`` if the weighting
        needs losses of examples and the subclass does not define them.
        """
        if rows == "example":
            raise ValueError(
                "the weighting needs the losses of single examples; define losses_by_part in "
                f"{type(self).__name__}, or choose another weighting."
            )
        return losses_of_halves(self.losses, batch)

    def traces(self, batch: Any) -> Mapping[str, LossAndCount]:
        """Return the trace of the neural tangent kernel of each loss's residuals, for ``ntk``, like :meth:`losses`.

        If a loss is the mean of squared residuals, it is the mean of their gradients' squared norms. Raises
        ``ValueError`` if the subclass does not define it.
        """
        raise ValueError(
            f"the weighting needs the traces of the residuals' kernel; define traces in {type(self).__name__}, or "
            "choose another weighting."
        )

    @property
    def step(self) -> Step:
        """The step, created on first use."""
        if self._step is None:
            named = {n: p for n, p in self.named_parameters() if not n.startswith("weighting.")}
            self._step = self._make_step(self.weighting, named, sharded=self)
            self._step.now, self._step.times = self.now, self.times
            if self._resumed is not None:
                self._step.load_state_dict({"ownership": self._step.ownership.state_dict(), **self._resumed})
                self._resumed = None
        return self._step

    @property
    def processes(self) -> int:
        """Number of processes."""
        return self.trainer.world_size if self._trainer else 1

    @property
    def window(self) -> int:
        """Number of batches per optimizer step."""
        if self.automatic_optimization:
            return int(self.trainer.accumulate_grad_batches) if self._trainer else 1
        return self._window

    @property
    def has_no_gramian(self) -> bool:
        """Whether a step provides no Gramian of all losses' gradients."""
        return self.needs_no_gramian or "wants" in hooks_of(self.weighting)

    @property
    def needs_no_gramian(self) -> bool:
        """Whether a step computes no Gramian of the losses' gradients."""
        weighting = self.weighting
        return isinstance(weighting, Scalarization) and (self.automatic_optimization or weighting.linear)

    def by_hand(self, accumulate: int) -> bool:
        """Return whether optimization is manual, given the number of micro-batches per step.

        Automatic optimization sums the scalars of micro-batches, which is not the scalar of the whole batch.
        """
        if isinstance(self.weighting, JacobianMethod) or (self._trainer and shards(self.trainer)):
            return True
        if self._manual is not None:
            return self._manual
        # DDP waits for gradients of parameters that an absent loss does not reach.
        return accumulate > 1 or (self.processes > 1 and self.can_be_absent)

    def modules_to_shard(self) -> Iterable[nn.Module]:
        """Return the modules to shard under a ``ModelParallelStrategy``; each must have a ``forward``."""
        return [child for name, child in self.named_children() if name != "weighting"]

    def configure_model(self) -> None:
        """Shard the model if the Trainer's strategy does; subclasses may override how."""
        if shards(self.trainer) and not sharded_modules(self):
            assert self.device_mesh is not None
            shard(self.modules_to_shard(), self.device_mesh["data_parallel"])
            self._step = None

    def configure_callbacks(self) -> list[Callback]:
        """Take over the Trainer's arguments that Lightning rejects under manual optimization."""
        if self.trainer.state.fn != TrainerFn.FITTING:
            return []
        if not hasattr(self, "weighting"):
            raise ValueError(f"{type(self).__name__} has no weighting; pass weighting= to its base class.")
        self.automatic_optimization = not self.by_hand(self.trainer.accumulate_grad_batches)
        if self.automatic_optimization:
            return []
        self._keys = TrainerKeys()
        self._keys.take(self.trainer)
        self._window = self._keys.window
        return [self._keys]

    @property
    def _scaler(self) -> Any:
        """The scaler of the losses under half precision; ``None`` without one."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    @property
    def _rows(self) -> Rows:
        """The unit of the weighting's rows: task, half of a batch, or example."""
        return self.weighting.rows if isinstance(self.weighting, JacobianMethod) else "task"

    def named_losses(self, batch: Any) -> tuple[dict[str, Tensor], Counts]:
        """Return the losses of a batch in the order of :attr:`names`, and their counts."""
        rows = self._rows
        losses = self.losses(batch) if rows == "task" else self.losses_by_part(batch, rows)
        return self._in_order(batch, losses)

    def _in_order(self, batch: Any, by_name: Mapping[str, LossAndCount]) -> tuple[dict[str, Tensor], Counts]:
        given: dict[str, tuple[Tensor, float | Tensor | None]] = {
            name: loss if isinstance(loss, tuple) else (loss, None) for name, loss in by_name.items()
        }
        if not self.names:
            self.names = self._all_names(given)
        if training := self._trainer is not None and self.trainer.training:
            given = {name: own for name, own in given.items() if name not in self.off}
        unknown = [name for name in given if name not in self.names]
        if unknown or not given:
            raise ValueError(
                f"losses returned {', '.join(unknown) or 'nothing'}, but the losses are {', '.join(self.names)}, as in "
                f"the first batch or names=; pass names= with all of them to {type(self).__name__}'s base class."
            )
        like = next(iter(given.values()))[0].detach()
        absent = (torch.zeros_like(like), torch.zeros(len(like)) if like.ndim else 0.0)
        losses = {name: given.get(name, absent)[0] for name in self.names}
        if training and self.factors:
            losses = {name: loss * self.factors.get(name, 1.0) for name, loss in losses.items()}
        counts = {name: given.get(name, absent)[1] for name in self.names}
        known = [count is not None for count in counts.values()]
        whole = self.window == 1 and self.processes == 1
        if whole and not any(known):
            return losses, None
        default = None if all(known) else self.examples(batch)
        # Either one number or one per loss, the same for all micro-batches and processes of a step.
        if not any(known) and not self.can_be_absent:
            return losses, default
        return losses, {name: default if c is None else c for name, c in counts.items()}  # type: ignore[misc]

    def _all_names(self, names: Iterable[str]) -> list[str]:
        """Return the names of the first batch's losses on all processes."""
        by_process = [list(names)] * self.processes
        if self.processes > 1:
            dist.all_gather_object(by_process, list(names))
        return list(dict.fromkeys(chain.from_iterable(by_process)))

    def examples(self, batch: Any) -> float:
        """Return the number of examples in a batch, the count of losses that come without one.

        Raises ``ValueError`` if the batch has no tensor, and is weighted against other batches.
        """
        count = examples_in(batch)
        if count is None and (self.window > 1 or self.processes > 1):
            raise ValueError(
                "the batch has no tensor to infer its number of examples from; let losses return (loss, count)."
            )
        return 1.0 if count is None else float(count)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Return the scalar to minimize, or take a step under manual optimization."""
        if self.automatic_optimization:
            self._batches, start = [batch], self.now()
            losses, counts = self.named_losses(batch)
            scalar = self.step.scalarize(losses, counts)
            self._spent("forward", start)
            if scalar is None and self._scaler is None:
                # Without labels there is no gradient, but an optimizer's closure must still return a number.
                return torch.zeros((), device=self.device, requires_grad=True)
            return scalar
        self._step_by_hand(batch, batch_idx)
        return None

    def _spent(self, section: str, start: float) -> None:
        self.times[section] = self.times.get(section, 0.0) + self.now() - start

    def on_before_backward(self, loss: Tensor) -> None:
        """Start timing the backward pass of automatic optimization."""
        self._mark = self.now()

    def on_after_backward(self) -> None:
        """Stop timing the backward pass of automatic optimization."""
        self._spent("task gradients", self._mark)

    def _step_by_hand(self, batch: Any, batch_idx: int) -> None:
        trainer = self.trainer
        if self._for_statistics:
            # Lightning's SWA runs an extra epoch to update the running statistics of the averaged weights.
            with torch.no_grad(), self._graph():
                self.named_losses(batch)
            return
        step, start = self.step, self.now()
        step.scaler = self._scaler
        losses, counts = self.named_losses(batch)
        self._spent("forward", start)
        if step.looks_after:
            self._batches.append(batch)
        if (batch_idx + 1) % self.window and not trainer.is_last_batch:
            step.add(losses, counts)
            return
        self._result = result = step.backward(losses, counts)
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)  # Lightning has refused several
        if result.present:
            start = self.now()
            optimizer.step(_single_closure(optimizer.optimizer))
            self._spent("optimizer", start)
            if step.looks_after and not result.overflow:
                self._after_step(result)
        optimizer.zero_grad()
        self._batches = []
        if trainer.lr_scheduler_configs:
            step_schedulers(self, batch_idx)

    def _report(self) -> None:
        """Record the result of a step for the loggers, and pass it to the observers."""
        result, self._result = self._result, None
        if result is None:
            return
        present, k = result.present, len(result.present)
        if self.can_be_absent:
            labelled = torch.zeros(len(self.names))
            labelled[present] = 1.0
            self.telemetry.add("train/labelled", labelled, self.names)
        if result.losses is None or result.overflow:
            return
        # Average the rows of each loss, and sum their weights.
        self.telemetry.add("train/loss", result.losses.view(-1, k).mean(0), self.names, present)
        if result.weights is not None:
            weights = result.weights.detach().view(-1, k).sum(0)
            self.telemetry.add("weight", weights, self.names, present)
        for observer in self.observers:
            observer(result)

    @property
    def labels_can_be_missing(self) -> bool:
        """Whether losses can be absent from a batch; the share of steps that have each loss is then logged.

        A subclass whose losses are always present may return ``False``: a linear scalarization then needs one backward
        pass per micro-batch instead of one per loss.
        """
        return True

    @property
    def can_be_absent(self) -> bool:
        """Whether a loss can be absent from a step, without labels or switched off by a callback."""
        return self.labels_can_be_missing or self.switchable

    @property
    def off(self) -> frozenset[str]:
        """The losses that are switched off: excluded from training steps, but still evaluated."""
        training = self._off and self._trainer is not None and self.trainer.training
        return frozenset().union(*self._off.values()) if training else frozenset()

    def switch_off(self, by: str, names: Iterable[str]) -> None:
        """Exclude all ``names`` from training steps until the next call by the same caller, ``by``.

        A loss is trained unless some caller has switched it off.
        """
        self._off[by] = frozenset(names)

    def _after_step(self, result: StepResult) -> None:
        batches, traces = self._batches, self.weighting.recomputed == "traces"

        def recompute() -> Tensor:
            mean = MeanLosses()
            for batch in batches:
                with self._graph():
                    values = self._in_order(batch, self.traces(batch)) if traces else self.named_losses(batch)
                mean.add(*values)
            means = mean.over_processes()
            if not means[result.present].isfinite().all():
                raise not_finite(means, self.names, self.trainer.global_step)
            return means

        self.step.after_step(recompute, result.present)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Raise if a loss is not finite; clip the combined, unscaled gradient."""
        if not self.automatic_optimization:
            if self._keys.clips:
                self._keys.clip(self, optimizer)
        elif self.step.evaluated is not None:
            self.step.check()
            self._mark = self.now()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimizer, then update the weighting under automatic optimization.

        This is one step of the weighting, however often the optimizer evaluates the losses.
        """
        self.step.evaluated = None
        if not self.automatic_optimization:
            super().optimizer_step(*args, **kwargs)
            return
        scaler = self._scaler
        scale = scaler.get_scale() if scaler else 0.0
        super().optimizer_step(*args, **kwargs)
        self._spent("optimizer", self._mark)
        if self.step.evaluated is not None:
            self._result = self.step.close()
        # A scaler that lowers its scale has skipped the step because of an overflow.
        skipped = scaler is not None and scaler.get_scale() < scale
        if not skipped and self._result is not None:
            self._after_step(self._result)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Step schedulers that monitor a metric every few steps, after the previous batch's validation."""
        self._for_statistics = averages_statistics(self.trainer)
        if batch_idx and batch_idx % self.window == 0:
            step_plateau_schedulers(self, "step", batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record the result of the step, and log every ``log_every_n_steps`` steps."""
        self._report()
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self.trainer.global_step % every == 0 or self.trainer.is_last_batch:
            self.telemetry.flush(self)

    def on_train_epoch_end(self) -> None:
        """End the weighting's epoch and step schedulers that monitor a metric, unless the epoch was interrupted."""
        if not self.trainer.is_last_batch:
            return
        self.weighting.on_epoch_end()
        step_plateau_schedulers(self, "step", self.trainer.fit_loop.batch_idx + 1)
        step_plateau_schedulers(self, "epoch", self.current_epoch + 1)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler, except those that monitor a metric, which step before the checkpoint."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the state for resuming, except the model's weights."""
        state = self.step.state_dict()
        del state["weighting"]  # among the weights
        checkpoint["multitask"] = {
            "step": state,
            "names": self.names,
            "telemetry": self.telemetry.state_dict(),
            "validated": self.validated,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the step, the values not logged yet, and the last validation."""
        state = checkpoint.get("multitask") or _legacy_state(checkpoint)
        if state is None:
            return
        self.telemetry.load_state_dict(state["telemetry"])
        self.validated, self.names = state["validated"], list(state["names"] or self.names)
        self._step, self._resumed = None, state["step"]

    def warn_once(self, key: str, sentence: str) -> None:
        """Print a warning about a config key, once per key."""
        if key not in self._warned and self.trainer.is_global_zero:
            print(f"warning: {key}{sentence}", file=sys.stderr)
        self._warned.add(key)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return one optimizer for the parameters of model and weighting; raise ``ValueError`` if none was given."""
        if self._optimizer is None:
            raise ValueError(
                f"{type(self).__name__} has no optimizer; pass optimizer= to its base class, or define "
                "configure_optimizers."
            )
        own = list(self.weighting.parameters())
        # Integer parameters, as in a quantized encoder, are not trained.
        trained = (p for p in self.parameters() if p.is_floating_point() or p.is_complex())
        model = [p for p in trained if not any(p is other for other in own)]
        groups: list[dict[str, Any]] = [{"params": model}]
        if own:
            rate = self._weighting_learning_rate
            groups.append({"params": own, "weight_decay": 0.0} | ({} if rate is None else {"lr": rate}))
        optimizer = self._optimizer(groups)
        if self._scheduler is None:
            return optimizer
        config: dict[str, Any] = {
            "scheduler": self._scheduler(optimizer),
            "interval": self.scheduler_options.get("interval", "epoch"),
            "frequency": self.scheduler_options.get("frequency", 1),
        }
        if self.automatic_optimization:
            # step_plateau_schedulers steps them, before the checkpoint.
            config["reduce_on_plateau"] = False
        return {"optimizer": optimizer, "lr_scheduler": config}  # type: ignore[return-value]


def _legacy_state(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state from a checkpoint of version 0.1; the graph shows again which parameters are shared."""
    if "telemetry" not in checkpoint:
        return None
    step = {"steps": checkpoint["global_step"]}
    return {"step": step, "names": [], **{key: checkpoint[key] for key in ("telemetry", "validated")}}


def _single_closure(optimizer: Optimizer) -> Callable[[], None]:
    """Return an empty closure for a step whose gradients are already computed, which may be called once.

    An optimizer that calls it again needs gradients at another point.
    """
    called = False

    def closure() -> None:
        nonlocal called
        if called:
            raise MisconfigurationException(
                f"{type(optimizer).__name__} computes the loss several times in a step, but "
                "manual optimization computes the gradients once; choose another optimizer, or a scalarization without "
                "accumulation."
            )
        called = True

    return closure
