"""The LightningModule: a shared trunk, one head a task, and a combiner of their losses."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from multitask.autodiff.gradients import TaskGradients
from multitask.data.loading import derived_seed
from multitask.model import MultiTaskModel
from multitask.optimization import ManualOptimization, step_plateau_schedulers
from multitask.ownership import Ownership
from multitask.penalty import Penalty
from multitask.randomness import seeded_apart
from multitask.shares import losses_of
from multitask.task import Batch, Task
from multitask.telemetry import FiniteLosses, Telemetry
from multitask.weighting.base import Combiner, JacobianMethod, Scalarization

Observer = Callable[[TaskGradients, Tensor | None, list[int]], None]

_SCHEDULER_OPTIONS = {"interval": "epoch", "frequency": 1}


class MultiTaskModule(MultiTaskModel):
    """Shared trunk + per-task heads, trained by any combiner.

    A scalarization trains by Lightning's automatic optimization, a Jacobian method by manual
    optimization that means the same by the Trainer's keys.

    Args:
        trunk: Inputs → features: one tensor for all tasks, or a mapping with one a task.
        tasks: The tasks by name, in the order of the losses.
        weighting: The combiner.
        optimizer: Parameter groups → optimizer.
        scheduler: Optimizer → scheduler, or ``None``.
        scheduler_options: ``interval``, ``frequency`` and ``monitor`` as Lightning names them.
        manual: Manual optimization; ``None`` for Lightning's automatic one, which only a
            scalarization can use.
        weighting_learning_rate: Learning rate of the combiner's own parameters, ``None`` for the
            optimizer's.
        seed: Seed of the combiner's random numbers.
    """

    def __init__(
        self,
        trunk: nn.Module,
        tasks: Mapping[str, Task | Penalty],
        weighting: Combiner,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        scheduler_options: Mapping[str, Any] | None = None,
        manual: ManualOptimization | None = None,
        weighting_learning_rate: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(trunk, tasks)
        self.weighting = weighting
        self.automatic_optimization = manual is None
        self.telemetry = Telemetry()
        self.ownership = Ownership()
        self.observers: list[Observer] = []
        self.clock: Callable[[str], AbstractContextManager[None]] = lambda section: nullcontext()
        self._optimizer = optimizer
        self._scheduler = scheduler
        self.scheduler_options = dict(scheduler_options or {})
        if manual is not None:
            self._manual = manual
        self._seed = seed
        self._weighting_learning_rate = weighting_learning_rate
        self.config: Mapping[str, Any] = {}
        self._batch: Batch | None = None

    @property
    def needs_no_gramian(self) -> bool:
        """Whether a step comes without the Gramian of the tasks' gradients."""
        return isinstance(self.weighting, Scalarization) and (
            self.automatic_optimization or self.weighting.linear
        )

    @property
    def window(self) -> int:
        """How many batches an optimizer step takes."""
        if self.automatic_optimization:
            return int(self.trainer.accumulate_grad_batches)
        return self._manual.accumulate_grad_batches

    @property
    def loss_scale(self) -> Tensor | float:
        """The factor that guards half-precision gradients against underflow; 1 elsewhere."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else scaler.scale(torch.ones((), device=self.device))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return the scalar to minimize, or take a step by hand."""
        self._batch = batch
        if self.automatic_optimization:
            return self._scalarized(batch)
        self._manual.step(self, batch, batch_idx)
        return None

    def _scalarized(self, batch: Batch) -> Tensor:
        assert isinstance(self.weighting, Scalarization)
        with self.clock("forward"):
            losses = self.losses(batch)
            finite = FiniteLosses(losses, self.names, self.trainer.global_step)
            if not losses.is_cuda:
                finite.check()  # nothing to wait for
            with self.as_present(list(range(len(losses)))):
                total = self.weighting(losses)
                (weights,) = torch.autograd.grad(total, losses, retain_graph=True)
        self._scalarized_step = (finite, losses.detach(), weights)
        return total

    def _close_scalarized(self) -> None:
        """Once the losses are known to be finite, show them to the combiner and keep them for the loggers."""
        finite, losses, weights = self._scalarized_step
        finite.check()
        every = list(range(len(losses)))
        with self.as_present(every):
            self.weighting.observe(losses)
        self.record(losses, weights, every)

    def combine(
        self, losses: Tensor, gradients: TaskGradients, present: list[int]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Let the combiner write the shared parameters' gradient.

        Args:
            losses: Detached losses of the rows, shape ``[k]``.
            gradients: The rows' gradients.
            present: The tasks that have rows.

        Returns:
            The weights of the rows, and factors of the heads' own gradients, where there are any.
        """
        factors = None
        with self.clock("solver"), self.as_present(present):
            if isinstance(self.weighting, JacobianMethod):
                factors = self.weighting.head_weights(losses)
                weights = self.weighting.combine(losses, gradients)
                self.weighting.observe(losses)
                own = self.weighting.own_loss(losses)
                if own is not None:
                    (own * self.loss_scale).backward()
            else:
                assert isinstance(self.weighting, Scalarization)
                leaf = losses.detach().clone().requires_grad_()
                (self.weighting(leaf) * self.loss_scale).backward()
                assert leaf.grad is not None
                weights = leaf.grad / self.loss_scale
                gradients.combine(weights)
                self.weighting.observe(losses)
        self.record(losses, weights, present)
        return weights, factors

    def observe(self, gradients: TaskGradients, weights: Tensor | None, present: list[int]) -> None:
        """Show a step's gradients and weights to who watches, before the optimizer's step."""
        for observer in self.observers:
            observer(gradients, weights, present)

    def record(self, losses: Tensor, weights: Tensor | None, present: list[int]) -> None:
        """Keep a step's losses and weights for the loggers; rows of one task are averaged and summed."""
        k = len(present)
        if len(losses) > k:
            losses = losses.view(-1, k).mean(0)
            weights = None if weights is None else weights.view(-1, k).sum(0)
        self.telemetry.add("train/loss", losses.detach(), self.names, present)
        if weights is not None:
            self.telemetry.add("weight", weights.detach(), self.names, present)

    def record_labelled(self, present: list[int]) -> None:
        """Keep, where labels can be missing, which tasks had one in a step: the loggers get the share of steps."""
        if any(task.missing for task in self.by_name.values()):
            labelled = torch.zeros(len(self.names))
            labelled[present] = 1.0
            self.telemetry.add("train/labelled", labelled, self.names)

    @contextmanager
    def as_present(self, present: list[int]) -> Iterator[None]:
        """See the combiner as that of the present tasks; its random numbers depend on seed and step alone.

        They are then the same on every process, and after a resume.
        """
        number = derived_seed("combiner", self._seed, self.trainer.global_step)
        with seeded_apart(number, self.device), self._restricted_to(present):
            yield

    def _restricted_to(self, present: list[int]) -> AbstractContextManager[None]:
        if len(present) == len(self.names):
            return nullcontext()
        mask = torch.zeros(len(self.names), dtype=torch.bool)
        mask[present] = True
        return self.weighting.restricted_to(mask)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the trunk's trainable parameters that enter the Jacobian."""
        return self.ownership.shared(self)

    def layout(self) -> list[tuple[str, int]]:
        """Return name and size of each shared parameter, in the order of the Jacobian's columns."""
        names = {id(p): name for name, p in self.trunk.named_parameters()}
        return [(names[id(p)], p.numel()) for p in self.shared_parameters()]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Step schedulers that watch a metric by steps: after the validation of the batch before."""
        if batch_idx and batch_idx % self.window == 0:
            step_plateau_schedulers(self, "step", batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Hand the losses to the loggers, every so many steps."""
        steps = self.trainer.global_step
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if steps % every == 0 or self.trainer.is_last_batch:
            self.telemetry.flush(self)

    def on_train_epoch_end(self) -> None:
        """Close the combiner's epoch and step schedulers that watch a metric, unless it was cut short."""
        if not self.trainer.is_last_batch:
            return
        self.weighting.on_epoch_end()
        step_plateau_schedulers(self, "step", int(self.trainer.num_training_batches))
        step_plateau_schedulers(self, "epoch", self.current_epoch + 1)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Stop at a loss that is not finite; clip the combined, unscaled gradient."""
        if self.automatic_optimization:
            self._close_scalarized()
        else:
            self._manual.clip(self, optimizer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the resolved config with the weights, so that a checkpoint is enough to evaluate."""
        checkpoint["config"] = self.config
        checkpoint["telemetry"] = self.telemetry.state_dict()
        checkpoint["validated"] = self.validated

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the losses that no logger has got yet, and with the last validation."""
        if "telemetry" in checkpoint:
            self.telemetry.load_state_dict(checkpoint["telemetry"])
            self.validated = checkpoint["validated"]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler; those that watch a metric are stepped before the checkpoint instead."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the combiner see the losses after the step (automatic optimization)."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler and self.automatic_optimization else 0.0
        super().optimizer_step(*args, **kwargs)
        # A loss scaler that lowers its scale has met an overflow, and skipped the step.
        skipped = scaler is not None and scaler.get_scale() < scale
        if self.automatic_optimization and not skipped:
            assert self._batch is not None
            self.after_step([self._batch], list(range(len(self.names))))

    def after_step(self, window: Sequence[Batch], present: list[int]) -> None:
        """Let the combiner see the losses of the same examples after the step, if it looks at them."""
        if type(self.weighting).after_step is Combiner.after_step:
            return
        with torch.no_grad(), self.as_present(present):
            self.weighting.after_step(lambda: losses_of(self, window, present))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Put trunk, heads and the combiner's own parameters into one optimizer."""
        own = list(self.weighting.parameters())
        # Integers, as in a quantized encoder, take no step.
        others = [p for p in self.parameters() if _is_real(p) and not _among(p, own)]
        groups: list[dict[str, Any]] = [{"params": others}]
        if own:
            rate = self._weighting_learning_rate
            groups.append({"params": own, "weight_decay": 0.0} | ({} if rate is None else {"lr": rate}))
        optimizer = self._optimizer(groups)
        if self._scheduler is None:
            return optimizer
        options = {
            key: self.scheduler_options.get(key, default) for key, default in _SCHEDULER_OPTIONS.items()
        }
        if self.automatic_optimization:
            options["reduce_on_plateau"] = (
                False  # step_plateau_schedulers steps them, in time for the checkpoint
            )
        return {  # type: ignore[return-value]
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._scheduler(optimizer), **options},
        }


def _is_real(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _among(parameter: nn.Parameter, others: list[nn.Parameter]) -> bool:
    return any(parameter is other for other in others)
