"""Tasks that are absent from a step: a combiner seen as that of the present tasks alone."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchjd import Stateful

Kind = Literal["vector", "matrix", "share", "factor"]
"""How a tensor is laid out over the m tasks: ``vector`` has them along its first axis, ``matrix``
along its first two. ``share`` is a vector of non-negative numbers that sum to one, ``factor`` one of
mean one: the present tasks' proportions are scaled to that, and what they sum to in the whole is kept."""


class _Cut(NamedTuple):
    """A tensor that was replaced by its part for the present tasks."""

    whole: Tensor | None
    put: Callable[[Tensor | None], None]
    get: Callable[[], Tensor | None]
    kind: Kind


@contextmanager
def only(root: nn.Module, present: Tensor) -> Iterator[None]:
    """Cut what the modules under ``root`` keep a task down to the present tasks, and merge it back.

    Inside, each module is as one that was made for the present tasks. Afterwards what it changed is
    written into the whole, and the absent tasks' entries are as they were. After an exception
    everything is as it was.

    Args:
        root: Modules that declare ``per_task``, or torchjd modules without memory, whose vectors of
            length m are taken as one number per task.
        present: Boolean, shape ``[m]``.

    Raises:
        ValueError: If a torchjd module has a memory, whose layout is its own affair.
    """
    if bool(present.all()):
        yield
        return
    with ExitStack() as stack:
        _enter(root, present, stack)
        yield


def _enter(module: nn.Module, present: Tensor, stack: ExitStack) -> None:
    stack.enter_context(_cut_down(module, present))
    for child in module.children():
        own = getattr(child, "restricted_to", None)
        if own is None:
            _enter(child, present, stack)
        else:
            stack.enter_context(own(present))


@contextmanager
def _cut_down(module: nn.Module, present: Tensor) -> Iterator[None]:
    cuts = list(_cuts(module, present))
    after = [cut.whole for cut in cuts]
    try:
        for cut in cuts:
            if cut.whole is not None:
                cut.put(_part(cut.whole, present, cut.kind))
        yield
        after = [_merged(cut.whole, cut.get(), present, cut.kind) for cut in cuts]
    finally:
        for cut, whole in zip(cuts, after, strict=True):
            cut.put(whole)


def _cuts(module: nn.Module, present: Tensor) -> Iterator[_Cut]:
    declared: dict[str, Kind] | None = getattr(type(module), "per_task", None)
    if declared is not None:
        for name, kind in declared.items():
            yield _Cut(
                getattr(module, name), partial(setattr, module, name), partial(getattr, module, name), kind
            )
    elif isinstance(module, Stateful):
        raise ValueError(
            f"weighting: {type(module).__name__} of torchjd keeps a memory that no task can be absent from, "
            "and one is missing in this batch; choose the weighting of this repository, or data with every label."
        )
    else:
        for name, value in [*vars(module).items(), *module.named_buffers(recurse=False)]:
            if isinstance(value, Tensor) and value.shape == present.shape:
                yield _Cut(value, partial(setattr, module, name), partial(getattr, module, name), "vector")


def _part(whole: Tensor, present: Tensor, kind: Kind) -> Tensor:
    present = present.to(whole.device)
    part = whole[present]
    if kind == "matrix":
        return part[:, present]
    if kind in ("share", "factor"):
        return _with_sum(part, 1.0 if kind == "share" else float(len(part)))
    return part


def _merged(whole: Tensor | None, part: Tensor | None, present: Tensor, kind: Kind) -> Tensor | None:
    if part is None:
        return whole
    present = present.to(part.device)
    m = len(present)
    if whole is None:
        # Begun among the present tasks: the others have not begun.
        whole = part.new_zeros((m, m) if kind == "matrix" else (m, *part.shape[1:]))
        return _written(whole, part, present, kind)
    if kind in ("share", "factor"):
        part = _with_sum(part, float(whole[present].sum()))
    return _written(whole.clone(), part, present, kind)


def _written(whole: Tensor, part: Tensor, present: Tensor, kind: Kind) -> Tensor:
    if kind == "matrix":
        chosen = present.nonzero().flatten()
        whole[chosen[:, None], chosen] = part
    else:
        whole[present] = part
    return whole


def _with_sum(part: Tensor, total: float) -> Tensor:
    mass = part.sum()
    return part * (total / mass) if float(mass) > 0 else torch.full_like(part, total / len(part))
