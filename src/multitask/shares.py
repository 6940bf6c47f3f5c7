"""Each task's share, in a micro-batch, of its mean loss over a whole step."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from multitask.task import Batch, Outcome
from multitask.telemetry import not_finite
from multitask.weighting.base import Rows

if TYPE_CHECKING:
    from multitask.module import MultiTaskModule


def features_of(module: "MultiTaskModule", batch: Batch) -> list[Tensor]:
    """Return the features of each task that has a head."""
    return module.features(batch["inputs"])


def groups_of(rows: Rows, batch: Batch) -> tuple[Tensor | None, int]:
    """Return each example's group and their number; the halves alternate, so that batches join evenly."""
    if rows == "task":
        return None, 1
    examples = torch.arange(len(batch["inputs"]), device=batch["inputs"].device)
    return (examples % 2, 2) if rows == "half" else (examples, len(examples))


def masses_of(module: "MultiTaskModule", window: Sequence[Batch], rows: Rows) -> Tensor | None:
    """Return what each row's mean is over in the whole window, ``[1 or 2, m]``.

    ``None`` where a row's mean loss in the batch is its mean loss in the window.
    """
    whole = len(window) == 1 and module.processes == 1
    if rows == "example" or (
        whole and rows == "task" and not any(t.missing for t in module.by_name.values())
    ):
        return None
    count = 2 if rows == "half" else 1
    totals = torch.zeros(count, len(module.names), dtype=torch.float64)
    for batch in window:
        group, _ = groups_of(rows, batch)
        for g in range(count):
            chosen = None if group is None else group == g
            # A penalty is the same in every part, and its mean is over the parts.
            masses = [
                module.by_name[name].count(batch, chosen) if name in module.by_name else 1.0
                for name in module.names
            ]
            totals[g] += _numbers(masses)
    totals = totals.to(module.device)
    if module.processes > 1:
        dist.all_reduce(totals)
    return totals


def _numbers(values: Sequence[Tensor | float]) -> Tensor:
    """Return the values as one tensor on the CPU, those that lie on a device in one transfer."""
    there = {i: value.double() for i, value in enumerate(values) if isinstance(value, Tensor)}
    found = torch.tensor([0.0 if isinstance(v, Tensor) else v for v in values], dtype=torch.float64)
    if there:
        found[list(there)] = torch.stack(list(there.values())).cpu()
    return found


def present_tasks(masses: Tensor | None, m: int) -> list[int]:
    """Return the tasks that have a labelled example in every group of rows."""
    if masses is None:
        return list(range(m))
    return (masses > 0).all(0).nonzero().flatten().tolist()


def shares_of(
    module: "MultiTaskModule",
    features: list[Tensor],
    batch: Batch,
    rows: Rows,
    masses: Tensor | None,
    present: Sequence[int],
) -> tuple[Tensor, list[Tensor | None]]:
    """Return each present row's share, in the order of the rows, and the penalties apart.

    Returns:
        Shares of shape ``[k]``, zeros for penalties; and for each row its penalty or ``None``.
    """
    names = [module.names[i] for i in present]
    if rows == "example":
        if len(names) != len(module.by_name):
            raise ValueError("a penalty has no loss an example, and the weighting has a row for each.")
        shares = module.each(features, batch).flatten()
        return shares, [None] * len(shares)
    outcomes = module.outcomes(features, batch, *groups_of(rows, batch))
    penalties = penalties_of(module, len(outcomes), masses, present)
    found: list[Tensor] = []
    for g, of_group in enumerate(outcomes):
        by_name = dict(zip(module.by_name, of_group, strict=True))
        for i, name in zip(present, names, strict=True):
            penalty = penalties[len(found)]
            found.append(
                _share(by_name[name], masses, g, i) if penalty is None else torch.zeros_like(penalty)
            )
    return torch.stack(found), penalties


def penalties_of(
    module: "MultiTaskModule", parts: int, masses: Tensor | None, present: Sequence[int]
) -> list[Tensor | None]:
    """Return each row's penalty over what it is a mean over, ``None`` for rows of tasks that have a head."""
    found: list[Tensor | None] = []
    for g in range(parts):
        for i in present:
            name = module.names[i]
            if name in module.by_name:
                found.append(None)
            else:
                loss = module.penalty(name)
                found.append(loss if masses is None else loss / masses[g, i].to(loss.dtype))
    return found


def losses_of(module: "MultiTaskModule", window: Sequence[Batch], present: Sequence[int]) -> Tensor:
    """Return the present tasks' mean losses over a window and all processes, shape ``[k]``.

    Raises:
        FloatingPointError: If a loss is not finite, naming task and step.
    """
    masses = masses_of(module, window, "task")
    total: Tensor | None = None
    for batch in window:
        shares, penalties = shares_of(module, features_of(module, batch), batch, "task", masses, present)
        whole = torch.stack([s if p is None else p for s, p in zip(shares, penalties, strict=True)])
        total = whole if total is None else total + whole
    assert total is not None
    if module.processes > 1:
        dist.all_reduce(total)
    if not total.isfinite().all():
        raise not_finite(total, [module.names[i] for i in present], module.trainer.global_step)
    return total


def _share(outcome: Outcome, masses: Tensor | None, group: int, task: int) -> Tensor:
    if masses is None:
        return outcome.loss
    return outcome.loss * (outcome.count / masses[group, task]).to(outcome.loss.dtype)
