"""One optimizer step over a window of micro-batches, from losses to the ``.grad`` of every parameter.

Trunk and heads are cut at the features. One backward pass of the summed losses gives each head its
own gradient and each task its gradient at the features; from there only the trunk is
differentiated, once a row. Every loss is divided by what its mean is over in the whole window, on
all processes, so that the gradients add up to those of one large batch.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from multitask.autodiff.accumulated import AccumulatedRows
from multitask.autodiff.gradients import Cotangents, Engine, TaskGradients
from multitask.autodiff.observed import Observed
from multitask.autodiff.scaled import Unscaled, poison
from multitask.distributed import sum_gradients
from multitask.finite import are_finite
from multitask.heads import Heads, are_tied, pull_penalty
from multitask.shares import features_of, groups_of, masses_of, penalties_of, present_tasks, shares_of
from multitask.task import Batch
from multitask.telemetry import not_finite
from multitask.weighting.base import JacobianMethod, Rows, Scalarization

if TYPE_CHECKING:
    from multitask.module import MultiTaskModule


@dataclass
class Plan:
    """What a step is over: known before its first forward pass."""

    rows: Rows
    """What has a row."""
    masses: Tensor | None
    """What each row's mean is over in the whole window; ``None`` where the batch is all of it."""
    present: list[int]
    """The tasks with a labelled example."""
    weighted: bool
    """Whether the heads' gradients are those of the weighted losses."""
    by_row: bool
    """Whether a head's gradient is put together from its rows at the end of the step."""


class Filled(NamedTuple):
    """What became of a step's gradients."""

    present: list[int]
    """The tasks that are labelled in the window; without one there is no step to take."""
    overflow: bool = False
    """Whether scaled gradients are infinite, so that the loss scaler skips the optimizer's step."""


class Step:
    """Fills the gradients for one optimizer step.

    Args:
        engine: How the trunk is differentiated.
        weighted_heads: Whether heads get their loss's gradient times its weight, rather than unweighted.
    """

    def __init__(self, engine: Engine, weighted_heads: bool) -> None:
        self._engine = engine
        self._accumulated = AccumulatedRows()
        self._weighted_heads = weighted_heads
        self._tied: bool | None = None

    def __call__(self, module: "MultiTaskModule", window: Sequence[Batch]) -> Filled:
        """Fill ``.grad`` of every parameter that a labelled example reaches.

        Raises:
            FloatingPointError: If a loss or a gradient is not finite.
        """
        combiner = module.weighting
        rows = combiner.rows if isinstance(combiner, JacobianMethod) else "task"
        masses = masses_of(module, window, rows)
        present = present_tasks(masses, len(module.names))
        module.record_labelled(present)
        if not present:
            return Filled([])
        module.ownership.find(module, window[0])
        if self._tied is None:
            self._tied = are_tied(module)
        weighted = self._weighted_heads or isinstance(combiner, Scalarization)
        plan = Plan(rows, masses, present, weighted, weighted or self._tied)
        overflow = False
        if isinstance(combiner, Scalarization) and combiner.linear:
            self._weighted_sum(module, combiner, window, plan)
        else:
            overflow = not self._jacobian(module, window, plan)
        for i in range(len(module.names)):
            if i not in present:
                for parameter in combiner.parameters_of(i):
                    parameter.grad = None
        return Filled(present, overflow)

    def _jacobian(self, module: "MultiTaskModule", window: Sequence[Batch], plan: Plan) -> bool:
        alone = len(window) == 1 and module.processes == 1
        engine = self._engine if alone or self._engine.accumulates else self._accumulated
        engine.clear()
        self._accumulated.begin(len(window))
        heads = Heads(module, plan.present, plan.by_row)
        gradients: TaskGradients | None = None
        losses: Tensor | None = None
        for batch in window:
            gradients, shares = self._micro_batch(module, engine, batch, plan, heads)
            losses = shares if losses is None else losses + shares
        assert gradients is not None
        assert losses is not None
        return self._combine(module, gradients, losses, heads, plan)

    def _micro_batch(
        self, module: "MultiTaskModule", engine: Engine, batch: Batch, plan: Plan, heads: Heads
    ) -> tuple[TaskGradients, Tensor]:
        """Add one micro-batch's rows and the heads' gradients; return the rows' losses, detached."""
        with module.clock("forward"), engine.watch(module.trunk):
            features = features_of(module, batch)
        leaves = [f.detach().requires_grad_() for f in features]
        with module.clock("forward"):
            shares, penalties = shares_of(module, leaves, batch, plan.rows, plan.masses, plan.present)
        with module.clock("task gradients"), _as_computed(module.device):
            if shares.requires_grad:
                (shares.sum() * module.loss_scale).backward(retain_graph=plan.by_row)
            direct = [None if p is None else p * module.loss_scale for p in penalties]
            for penalty in direct:
                if penalty is not None:
                    pull_penalty(penalty, [p for p in module.tasks.parameters() if p.requires_grad])
            outputs = list(dict.fromkeys(features))
            numbers = {name: i for i, name in enumerate(module.names)}
            cut = {
                numbers[name]: (feature, leaf)
                for name, feature, leaf in zip(module.by_name, features, leaves, strict=True)
            }
            by_task: list[list[Tensor | None]] = [
                [cut[i][1].grad if i in cut and cut[i][0] is output else None for output in outputs]
                for i in plan.present
            ]
            cotangents = Cotangents(by_task, *groups_of(plan.rows, batch))
            whole = _with_penalties(shares, penalties)
            if plan.by_row and any(p is not None for p in penalties):
                # The engine may use up the penalties' graphs.
                parts = len(penalties) // len(plan.present)
                fresh = penalties_of(module, parts, plan.masses, plan.present)
                heads.add(_with_penalties(shares, fresh), cut, outputs, cotangents)
            else:
                heads.add(whole, cut, outputs, cotangents)
            gradients = engine.differentiate(outputs, cotangents, module.shared_parameters(), direct)
        return gradients, whole.detach()

    def _combine(
        self, module: "MultiTaskModule", gradients: TaskGradients, losses: Tensor, heads: Heads, plan: Plan
    ) -> bool:
        """Let the combiner write the trunk's gradient, and finish the heads' by its word.

        Returns:
            Whether there is a step to take: not where scaled gradients overflowed.
        """
        if module.processes > 1:
            dist.all_reduce(losses)
        gradients = Observed(gradients, module.layout)
        scale = module.loss_scale
        with _as_computed(module.device):
            checked = [losses, gradients.gramian()]
            if isinstance(scale, Tensor):
                checked += [p.grad for p in module.tasks.parameters() if p.grad is not None]
            # The only time at which a step waits for the device: the combiner needs the Gramian now.
            of_losses, *of_gradients = are_finite(checked)
            if not of_losses:
                raise not_finite(losses, [module.names[i] for i in plan.present], module.trainer.global_step)
            finite = all(of_gradients)
            if isinstance(scale, Tensor):
                finite = _everywhere(module, finite)
            if not finite:
                if not isinstance(scale, Tensor):
                    raise FloatingPointError(
                        f"The gradient of a task is not finite at step {module.trainer.global_step}, and its loss is."
                    )
                poison(gradients, len(losses), losses)
                return False
            if isinstance(scale, Tensor):
                gradients = Observed(Unscaled(gradients, scale), module.layout)
            weights, factors = module.combine(losses, gradients, plan.present)
        module.observe(gradients, weights, plan.present)
        if plan.weighted and weights is None:
            raise ValueError(
                f"weighting: {type(module.weighting).__name__} gives no weights; set weighting.heads=own."
            )
        heads.finish(len(losses) // len(plan.present), weights if plan.weighted else None, factors)
        if module.processes > 1:
            sum_gradients([*module.tasks.parameters(), *module.ownership.all_specific()])
        return True

    def _weighted_sum(
        self, module: "MultiTaskModule", combiner: Scalarization, window: Sequence[Batch], plan: Plan
    ) -> None:
        """One backward pass a micro-batch: the weights are known before the losses."""
        k = len(plan.present)
        dtype = next(p.dtype for p in module.parameters() if p.requires_grad)
        probe = torch.ones(k, device=module.device, dtype=dtype, requires_grad=True)
        with module.as_present(plan.present):
            (weights,) = torch.autograd.grad(combiner(probe), probe)
        losses = torch.zeros(k, device=module.device, dtype=dtype)
        for batch in window:
            with module.clock("forward"):
                shares, penalties = shares_of(
                    module, features_of(module, batch), batch, "task", plan.masses, plan.present
                )
                whole = _with_penalties(shares, penalties)
            with module.clock("task gradients"):
                ((weights * whole).sum() * module.loss_scale).backward()
            losses += whole.detach()
        if module.processes > 1:
            dist.all_reduce(losses)
            sum_gradients([*module.trunk.parameters(), *module.tasks.parameters()])
        if not losses.isfinite().all():
            raise not_finite(losses, [module.names[i] for i in plan.present], module.trainer.global_step)
        with module.as_present(plan.present):
            total = combiner(losses) * module.loss_scale
            if total.requires_grad:
                total.backward()
            combiner.observe(losses)
        module.record(losses, weights, plan.present)


def _with_penalties(shares: Tensor, penalties: Sequence[Tensor | None]) -> Tensor:
    """Put the penalties' losses in place of the zeros that stand for them among the rows."""
    if all(penalty is None for penalty in penalties):
        return shares
    return torch.stack([s if p is None else p for s, p in zip(shares, penalties, strict=True)])


def _as_computed(device: torch.device) -> AbstractContextManager[object]:
    """Keep autocast, where it is on, from gradients."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _everywhere(module: "MultiTaskModule", here: bool) -> bool:
    """Return whether something holds on every process."""
    if module.processes == 1:
        return here
    flag = torch.tensor(float(here), device=module.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)
