"""A trunk of linear layers."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn


class MLP(nn.Sequential):
    """Layers whose inputs are flattened first, without a layer that would shift the others' numbers."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features, ``[batch, widths[-1]]``, of inputs ``[batch, …]``."""
        return super().forward(inputs.flatten(1))


def mlp(widths: Sequence[int] = (512, 512), activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return linear layers, each followed by an activation; the first takes the width of its input.

    Args:
        widths: Widths of the layers: inputs ``[batch, …]``, flattened where they have more
            dimensions, → features ``[batch, widths[-1]]``.
        activation: Makes what follows each layer; a smooth one where losses are of second derivatives.
    """
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.LazyLinear(width), activation()]
    return MLP(*layers)
