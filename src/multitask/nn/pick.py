"""Selection of one tensor from a module's output."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Pick(nn.Module):
    """Returns one part of a module's output, so that the module can be a trunk.

    Args:
        module: A module that returns a tuple, a mapping or an object with attributes.
        key: Index, key or attribute of the part.
    """

    def __init__(self, module: nn.Module, key: int | str) -> None:
        super().__init__()
        self.module = module
        self.key = key

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the part; raise ``ValueError`` if the output has no such part."""
        output: Any = self.module(inputs)
        try:
            by_key = isinstance(self.key, int) or isinstance(output, Mapping)
            part: Tensor = output[self.key] if by_key else getattr(output, str(self.key))
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(
                f"trunk.key={self.key}: {type(self.module).__name__} gives a {type(output).__name__} without it."
            ) from error
        return part
