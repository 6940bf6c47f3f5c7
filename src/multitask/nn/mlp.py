"""A trunk of linear layers."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn


class MLP(nn.Sequential):
    """Sequential layers on flattened inputs; a Flatten layer would change the indices of the others."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features, ``[batch, widths[-1]]``, of inputs ``[batch, …]``."""
        return super().forward(inputs.flatten(1))


def mlp(widths: Sequence[int] = (512, 512), activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return linear layers, each followed by an activation: inputs ``[batch, …]`` → features ``[batch, widths[-1]]``.

    The input width is inferred. Losses of second derivatives need a smooth activation.
    """
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.LazyLinear(width), activation()]
    return MLP(*layers)
