"""Absent tasks: restriction of a combiner to the tasks that are present in a step."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torchjd import Stateful

Layout = Literal["vector", "matrix", "share", "factor"]
"""How a tensor holds the entries of m tasks: a ``vector`` has them along its first dimension, a ``matrix`` along its
first two. A ``share`` is a vector of non-negative numbers with sum one, and a ``factor`` one with mean one; the present
tasks' entries are rescaled to that, and scaled back to their former sum afterwards."""


@contextmanager
def restrict(root: nn.Module, present: Tensor) -> Iterator[None]:
    """Restrict the per-task tensors of all modules under ``root`` to the present tasks, and merge them back.

    Inside, each module behaves like one created for the present tasks. Afterwards the entries of absent tasks are
    unchanged; after an exception, all entries are.

    Args:
        root: Modules that declare ``per_task``, or stateless torchjd modules, whose vectors of length m are taken as
            one number per task.
        present: Boolean, shape ``[m]``.

    Raises:
        ValueError: If a torchjd module has state, whose layout is unknown.
    """
    if bool(present.all()):
        yield
        return
    with ExitStack() as stack:
        _enter(root, present, stack)
        yield


def _enter(module: nn.Module, present: Tensor, stack: ExitStack) -> None:
    stack.enter_context(_restricted(module, present))
    for child in module.children():
        own = getattr(child, "restricted_to", None)
        if own is None:
            _enter(child, present, stack)
        else:
            stack.enter_context(own(present))


@contextmanager
def _restricted(module: nn.Module, present: Tensor) -> Iterator[None]:
    layouts = _layouts(module, present)
    before: dict[str, Tensor | None] = {name: getattr(module, name) for name in layouts}
    after = before
    try:
        for name, whole in before.items():
            if whole is not None:
                setattr(module, name, _part(whole, present, layouts[name]))
        yield
        after = {
            name: _merged(whole, getattr(module, name), present, layouts[name])
            for name, whole in before.items()
        }
    finally:
        for name, whole in after.items():
            setattr(module, name, whole)


def _layouts(module: nn.Module, present: Tensor) -> Mapping[str, Layout]:
    """Return the names of the module's own tensors with one entry per task, and their layouts."""
    declared: Mapping[str, Layout] | None = getattr(type(module), "per_task", None)
    if declared is not None:
        return declared
    if isinstance(module, Stateful):
        raise ValueError(
            f"weighting: {type(module).__name__} of torchjd has state for all tasks, "
            "but one is absent from this batch; choose a weighting of this package, or data with all labels."
        )
    values = [*vars(module).items(), *module.named_buffers(recurse=False)]
    return {name: "vector" for name, v in values if isinstance(v, Tensor) and v.shape == present.shape}


def _part(whole: Tensor, present: Tensor, layout: Layout) -> Tensor:
    present = present.to(whole.device)
    part = whole[present]
    if layout == "matrix":
        return part[:, present]
    if layout in ("share", "factor"):
        return _with_sum(part, 1.0 if layout == "share" else float(len(part)))
    return part


def _merged(whole: Tensor | None, part: Tensor | None, present: Tensor, layout: Layout) -> Tensor | None:
    if part is None:
        return whole
    present = present.to(part.device)
    if whole is None:
        # Initialized in this step: absent tasks start at zero.
        m = len(present)
        merged = part.new_zeros((m, m) if layout == "matrix" else (m, *part.shape[1:]))
    else:
        merged = whole.clone()
        if layout in ("share", "factor"):
            part = _with_sum(part, float(whole[present].sum()))
    if layout == "matrix":
        chosen = present.nonzero().flatten()
        merged[chosen[:, None], chosen] = part
    else:
        merged[present] = part
    return merged


def _with_sum(part: Tensor, total: float) -> Tensor:
    current = part.sum()
    return part * (total / current) if float(current) > 0 else torch.full_like(part, total / len(part))
