"""Absent tasks: restriction of a combiner to the tasks that are present in a step."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchjd import Stateful

Layout = Literal["vector", "matrix", "share", "factor"]
"""How a tensor holds the entries of m tasks: a ``vector`` has them along its first dimension, a ``matrix`` along its
first two. A ``share`` is a vector of non-negative numbers with sum one, and a ``factor`` one with mean one; the present
tasks' entries are rescaled to that, and scaled back to their former sum afterwards."""


class _Restriction(NamedTuple):
    """A tensor that is replaced by its part for the present tasks."""

    whole: Tensor | None
    put: Callable[[Tensor | None], None]
    get: Callable[[], Tensor | None]
    layout: Layout


@contextmanager
def restrict(root: nn.Module, present: Tensor) -> Iterator[None]:
    """Restrict the per-task tensors of all modules under ``root`` to the present tasks, and merge them back.

    Inside, each module behaves like one created for the present tasks. Afterwards its changes are written into the
    full tensors, and the entries of absent tasks are unchanged. After an exception, all tensors are unchanged.

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
    tensors = list(_restrictions(module, present))
    after = [t.whole for t in tensors]
    try:
        for t in tensors:
            if t.whole is not None:
                t.put(_part(t.whole, present, t.layout))
        yield
        after = [_merged(t.whole, t.get(), present, t.layout) for t in tensors]
    finally:
        for t, whole in zip(tensors, after, strict=True):
            t.put(whole)


def _restrictions(module: nn.Module, present: Tensor) -> Iterator[_Restriction]:
    declared: dict[str, Layout] | None = getattr(type(module), "per_task", None)
    if declared is not None:
        for name, layout in declared.items():
            yield _Restriction(
                getattr(module, name), partial(setattr, module, name), partial(getattr, module, name), layout
            )
    elif isinstance(module, Stateful):
        raise ValueError(
            f"weighting: {type(module).__name__} of torchjd has state for all tasks, "
            "but one is absent from this batch; choose a weighting of this package, or data with all labels."
        )
    else:
        for name, value in [*vars(module).items(), *module.named_buffers(recurse=False)]:
            if isinstance(value, Tensor) and value.shape == present.shape:
                yield _Restriction(
                    value, partial(setattr, module, name), partial(getattr, module, name), "vector"
                )


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
    m = len(present)
    if whole is None:
        # Initialized in this step: absent tasks start at zero.
        whole = part.new_zeros((m, m) if layout == "matrix" else (m, *part.shape[1:]))
        return _written(whole, part, present, layout)
    if layout in ("share", "factor"):
        part = _with_sum(part, float(whole[present].sum()))
    return _written(whole.clone(), part, present, layout)


def _written(whole: Tensor, part: Tensor, present: Tensor, layout: Layout) -> Tensor:
    if layout == "matrix":
        chosen = present.nonzero().flatten()
        whole[chosen[:, None], chosen] = part
    else:
        whole[present] = part
    return whole


def _with_sum(part: Tensor, total: float) -> Tensor:
    current = part.sum()
    return part * (total / current) if float(current) > 0 else torch.full_like(part, total / len(part))
