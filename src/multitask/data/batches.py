"""Operations on nested batches: mappings, sequences, dataclasses, objects."""

from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors in a batch."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_of(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from tensors_of(value)
    else:
        for name in _attributes(batch):
            yield from tensors_of(getattr(batch, name))


def _attributes(batch: Any) -> list[str]:
    if isinstance(batch, type):
        return []
    if is_dataclass(batch):
        return [field.name for field in fields(batch)]
    return list(getattr(batch, "__dict__", []))


def examples_in(batch: Any) -> int | None:
    """Return the number of examples: the length of the first tensor that is not a scalar; ``None`` without one."""
    return next((len(tensor) for tensor in tensors_of(batch) if tensor.ndim), None)


def picked(batch: Any, indices: Tensor) -> Any:
    """Return the examples of some indices ``[k]`` of a batch of any nesting.

    Each tensor, and each list without tensors, that has one entry per example is indexed.
    """
    count = examples_in(batch)

    def pick(tensor: Tensor) -> Tensor:
        return tensor[indices.to(tensor.device)] if tensor.ndim and len(tensor) == count else tensor

    def pick_plain(values: list[Any] | tuple[Any, ...]) -> Any:
        return type(values)(values[int(i)] for i in indices) if len(values) == count else values

    return mapped(batch, pick, pick_plain)


def mapped(
    batch: Any, function: Callable[[Tensor], Tensor], plain: Callable[[Any], Any] | None = None
) -> Any:
    """Return a batch of the same nesting with a function applied to its tensors.

    ``plain`` is applied to lists and tuples without tensors, such as file names; by default they are unchanged.
    """

    def within(value: Any) -> Any:
        return mapped(value, function, plain)

    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        made = {key: within(value) for key, value in batch.items()}
        return made if type(batch) is dict else _like(batch, made)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(within, batch))
    if isinstance(batch, list | tuple):
        if plain is not None and next(tensors_of(batch), None) is None:
            return plain(batch)
        return type(batch)(map(within, batch))
    if next(tensors_of(batch), None) is None:
        return batch
    changed = copy(batch)
    for name in _attributes(batch):
        object.__setattr__(changed, name, within(getattr(batch, name)))  # also for frozen dataclasses
    return changed


def _like(batch: Mapping[Any, Any], made: dict[Any, Any]) -> Any:
    try:
        return type(batch)(made)  # type: ignore[call-arg]
    except TypeError:
        return made


def few_of(batch: Any, most: int = 8) -> Any:
    """Return a few evenly spaced examples of a batch, whose first ones may all come from one source.

    If the tensors differ in length, as for graphs and packed sequences, return the whole batch.
    """
    sizes = {len(tensor) for tensor in tensors_of(batch) if tensor.ndim}
    if len(sizes) != 1:
        return batch
    (size,) = sizes
    return picked(batch, torch.linspace(0, size - 1, min(most, size)).long()) if size else batch


def halves(batch: Any) -> list[Any]:
    """Return the even and the odd examples, so that halves of micro-batches join to halves of the whole batch.

    A batch of one example has only the first half. Raises ``ValueError`` if the batch has no tensors.
    """
    count = examples_in(batch)
    if count is None:
        raise ValueError(
            "the weighting needs two halves of every batch, but the batch has no tensors to split; define "
            "losses_by_part, or choose another weighting."
        )
    order = torch.arange(count)
    return [picked(batch, order[::2]), picked(batch, order[1::2])][: min(count, 2)]
