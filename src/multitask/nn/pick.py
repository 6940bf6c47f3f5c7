"""One tensor of the several that a library's module returns."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Pick(nn.Module):
    """A module's output by index, key or attribute, so that the module can be a trunk.

    Args:
        module: A module that returns a tuple, a mapping or an object with attributes.
        key: Which of its parts to hand on; ``0`` is the first of a tuple.

    Raises:
        ValueError: At the first call, if there is no such part.
    """

    def __init__(self, module: nn.Module, key: int | str) -> None:
        super().__init__()
        self.module = module
        self.key = key

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the part."""
        output: Any = self.module(inputs)
        try:
            by_key = isinstance(self.key, int) or isinstance(output, Mapping)
            part: Tensor = output[self.key] if by_key else getattr(output, str(self.key))
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"trunk.key={self.key}: {type(self.module).__name__} gives a {type(output).__name__} without it."
            ) from error
        return part
