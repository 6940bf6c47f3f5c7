"""One optimizer step over a window of micro-batches, from losses to the ``.grad`` of every parameter.

Trunk and heads are cut at the features. One backward pass of the summed losses gives each head its
own gradient and each task its gradient at the features; from there only the trunk is
differentiated, once a row. Every loss is divided by what its mean is over in the whole window, on
all processes, so that the gradients add up to those of one large batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from multitask.autodiff.gradients import Cotangents, Engine, TaskGradients
from multitask.autodiff.observed import Observed
from multitask.autodiff.rows import AccumulatedRows, RowGradients, add_to_gradients
from multitask.autodiff.scaled import Unscaled, poison
from multitask.autodiff.sharded import ShardedRows
from multitask.distributed import sum_gradients
from multitask.ownership import pull_penalty
from multitask.shares import features_of, groups_of, masses_of, present_tasks, shares_of
from multitask.task import Batch
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

    def __call__(self, module: "MultiTaskModule", window: Sequence[Batch]) -> list[int]:
        """Fill ``.grad`` of every parameter that a labelled example reaches.

        Returns:
            The tasks that are labelled in the window; without one there is no step to take.

        Raises:
            FloatingPointError: If a loss or a gradient is not finite.
        """
        combiner = module.weighting
        rows = combiner.rows if isinstance(combiner, JacobianMethod) else "task"
        masses = masses_of(module, window, rows)
        present = present_tasks(masses, len(module.names))
        if not present:
            return []
        module.ownership.find(module, window[0])
        weighted = self._weighted_heads or isinstance(combiner, Scalarization)
        plan = Plan(rows, masses, present, weighted)
        if isinstance(combiner, Scalarization) and combiner.linear:
            self._weighted_sum(module, combiner, window, plan)
        else:
            self._jacobian(module, window, plan)
        for i in range(len(module.names)):
            if i not in present:
                for parameter in combiner.parameters_of(i):
                    parameter.grad = None
        return present

    def _jacobian(self, module: "MultiTaskModule", window: Sequence[Batch], plan: Plan) -> None:
        alone = len(window) == 1 and module.processes == 1
        engine = self._engine if alone or self._engine.accumulates else self._accumulated
        engine.clear()
        gradients: TaskGradients | None = None
        kept: list[Tensor] = []
        for batch in window:
            gradients, shares = self._micro_batch(module, engine, batch, plan)
            kept.append(shares)
        assert gradients is not None
        losses = torch.stack([shares.detach() for shares in kept]).sum(0)
        self._combine(module, gradients, losses, kept, plan)

    def _micro_batch(
        self, module: "MultiTaskModule", engine: Engine, batch: Batch, plan: Plan
    ) -> tuple[TaskGradients, Tensor]:
        """Add one micro-batch's rows; fill the heads' own gradients."""
        with module.clock("forward"), engine.watch(module.trunk):
            features = features_of(module, batch)
        leaves = [f.detach().requires_grad_() for f in features]
        with module.clock("forward"):
            shares, penalties = shares_of(module, leaves, batch, plan.rows, plan.masses, plan.present)
        with module.clock("task gradients"), torch.autocast(module.device.type, enabled=False):
            if shares.requires_grad:
                (shares.sum() * module.loss_scale).backward(retain_graph=plan.weighted)
            direct = [None if p is None else p * module.loss_scale for p in penalties]
            for penalty in direct:
                if penalty is not None:
                    pull_penalty(penalty, [p for p in module.tasks.parameters() if p.requires_grad])
            outputs = list(dict.fromkeys(features))
            cut = {
                module.names.index(name): (feature, leaf)
                for name, feature, leaf in zip(module.by_name, features, leaves, strict=True)
            }
            for i in plan.present:
                if i in cut:
                    module.ownership.pull(i, cut[i][0], cut[i][1].grad)
            by_task: list[list[Tensor | None]] = [
                [cut[i][1].grad if i in cut and cut[i][0] is output else None for output in outputs]
                for i in plan.present
            ]
            cotangents = Cotangents(by_task, *groups_of(plan.rows, batch))
            shared = module.shared_parameters()
            gradients = engine.differentiate(outputs, cotangents, shared, direct)
        whole = _with_penalties(shares, penalties, plan)
        return gradients, whole if plan.weighted else whole.detach()

    def _combine(
        self,
        module: "MultiTaskModule",
        gradients: TaskGradients,
        losses: Tensor,
        kept: Sequence[Tensor],
        plan: Plan,
    ) -> None:
        """Let the combiner write the trunk's gradient, and finish the heads' by its word."""
        if module.processes > 1:
            dist.all_reduce(losses)
            if isinstance(gradients, RowGradients):
                with module.clock("task gradients"):
                    gradients = ShardedRows(gradients.jacobian(), module.shared_parameters())
        gradients = Observed(gradients)
        scale = module.loss_scale
        with torch.autocast(module.device.type, enabled=False):
            if not gradients.gramian().isfinite().all():
                if not isinstance(scale, Tensor):
                    raise FloatingPointError(
                        f"The gradient of a task is not finite at step {module.trainer.global_step}, and its loss is."
                    )
                poison(gradients, len(losses), losses)
                return
            if isinstance(scale, Tensor):
                gradients = Observed(Unscaled(gradients, scale))
            gradients.layout = module.layout()
            weights, factors = module.combine(losses, gradients, plan.present)
        module.observe(gradients, weights, plan.present)
        if plan.weighted:
            if weights is None:
                raise ValueError(
                    f"weighting: {type(module.weighting).__name__} gives no weights; set weighting.heads=own."
                )
            _weigh_heads(module, kept, weights)
            # Of halves of a mean, each with its weight: the same where the weights of both are.
            of_tasks = weights.view(-1, len(plan.present)).mean(0) * (2 if plan.rows == "half" else 1)
            for i, weight in zip(plan.present, of_tasks, strict=True):
                module.ownership.scale(i, weight)
        elif factors is not None:
            for i, factor in zip(plan.present, factors, strict=True):
                module.ownership.scale(i, factor, list(module.tasks[module.names[i]].parameters()))
        if module.processes > 1:
            sum_gradients([*module.tasks.parameters(), *module.ownership.all_specific()])

    def _weighted_sum(
        self, module: "MultiTaskModule", combiner: Scalarization, window: Sequence[Batch], plan: Plan
    ) -> None:
        """One backward pass a micro-batch: the weights are known before the losses."""
        k = len(plan.present)
        dtype = next(module.parameters()).dtype
        probe = torch.ones(k, device=module.device, dtype=dtype, requires_grad=True)
        with module.as_present(plan.present):
            (weights,) = torch.autograd.grad(combiner(probe), probe)
        losses = torch.zeros(k, device=module.device, dtype=dtype)
        for batch in window:
            with module.clock("forward"):
                shares, penalties = shares_of(
                    module, features_of(module, batch), batch, "task", plan.masses, plan.present
                )
                whole = _with_penalties(shares, penalties, plan)
            with module.clock("task gradients"):
                ((weights * whole).sum() * module.loss_scale).backward()
            losses += whole.detach()
        if module.processes > 1:
            dist.all_reduce(losses)
            sum_gradients([*module.trunk.parameters(), *module.tasks.parameters()])
        with module.as_present(plan.present):
            total = combiner(losses) * module.loss_scale
            if total.requires_grad:
                total.backward()
            combiner.observe(losses)
        module.record(losses, weights, plan.present)


def _with_penalties(shares: Tensor, penalties: Sequence[Tensor | None], plan: Plan) -> Tensor:
    """Put the penalties' losses in place of the zeros that stand for them among the rows."""
    if all(penalty is None for penalty in penalties):
        return shares
    return torch.stack([s if p is None else p for s, p in zip(shares, penalties, strict=True)])


def _weigh_heads(module: "MultiTaskModule", kept: Sequence[Tensor], weights: Tensor) -> None:
    """Put the heads' gradients of the weighted losses in place of those of the plain ones."""
    heads = [p for p in module.tasks.parameters() if p.requires_grad and p.grad is not None]
    if not heads:
        return
    for parameter in heads:
        parameter.grad = None
    for shares in kept:
        total = (weights.to(shares.dtype) * shares).sum() * module.loss_scale
        found = torch.autograd.grad(total, heads, allow_unused=True)
        there = [(p, g) for p, g in zip(heads, found, strict=True) if g is not None]
        add_to_gradients([p for p, _ in there], [g for _, g in there])
