"""Operations whose weight gradient is a product ``Dᵀ A`` of output gradients and inputs.

A row of ``A``, ``[positions, p]``, or of ``D``, ``[positions, q]``, belongs to one *position*: an example, token or
pixel.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from multitask.gradients.graph import Node
from multitask.gradients.kernels import through_kernel
from multitask.gradients.rows import inner_products
from multitask.gradients.uses import Use

# Inputs are centred if their mean makes up this share of their squares; a smaller mean costs at most one digit.
_FAR = 0.9
# The most elements of a convolution's patches that are formed for speed alone.
_LARGEST = 2**23


@dataclass(eq=False)
class Operand:
    """The inputs ``A``, ``[positions, p]``, of ``x Wᵀ``, or in subclasses of another operation."""

    shape: torch.Size
    """The shape of the weight."""
    stored: Tensor
    """``A`` in a compact form, with one or several positions per entry."""
    each: int
    """The number of positions per entry."""
    q: int
    """The number of columns of ``D``."""
    p: int
    """The number of columns of ``A``."""

    dense: ClassVar[bool] = True
    """Whether a product with ``A`` takes p operations per position."""
    units: ClassVar[int] = 0
    """The dimension of the weight that corresponds to the columns of ``D``."""

    @property
    def positions(self) -> int:
        """The number of positions."""
        return len(self.stored) * self.each

    @property
    def kind(self) -> Hashable:
        """Equal for operands whose positions can be concatenated."""
        values = (v.shape[1:] if v is self.stored else v for v in vars(self).values())
        return type(self).__name__, *values

    @property
    def wasteful(self) -> bool:
        """Whether the operation's own weight gradient is slower than the product."""
        return False

    def on(self, stored: Tensor) -> Self:
        """Return the same operation with other inputs."""
        return replace(self, stored=stored)

    def inputs(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """Return ``A``, shape ``[positions, p]``; in ``out`` if it has to be formed."""
        return self.stored.to(dtype)

    def matrix(self, gradient: Tensor) -> Tensor:
        """Return output gradients, ``[k, *output]``, as ``D``, ``[k, positions, q]``."""
        return gradient.reshape(len(gradient), self.positions, self.q)

    def product(self, D: Tensor) -> Tensor:
        """Return ``Dᵀ A``, shape ``[…, *shape]``, of ``D``, ``[…, positions, q]``."""
        return self.as_weights(D.mT @ self.inputs(D.dtype))

    def as_weights(self, products: Tensor) -> Tensor:
        """Return products ``[…, q, p]``, or those of some columns of ``D``, in the shape of the weight."""
        return products.unflatten(-1, self.shape[1:])

    def gradients(
        self, D: Tensor, parameters: Sequence[Tensor], inputs: Tensor | None = None
    ) -> list[Tensor]:
        """Return the gradients ``Dᵀ A`` of the weight and ``Dᵀ 1`` of the bias, if any; ``inputs`` may give ``A``."""
        weight = self.product(D) if inputs is None else self.as_weights(D.mT @ inputs)
        return [weight, D.sum(-2)][: len(parameters)]

    def gramian(self, D: Tensor, bias: float) -> Tensor:
        """Return ``⟨D_i, (A Aᵀ + bias · 1 1ᵀ) D_j⟩``, shape ``[k, k]``, of ``D``, ``[k, positions, q]``.

        With ``A = C + 1 μᵀ``, where μ are the means of the columns, it is ``⟨D_i, C Cᵀ D_j⟩`` plus products of sums
        over positions. If inputs lie far from zero and a row nearly cancels over the batch, products of the inputs
        themselves would leave only rounding errors.
        """
        mean, centred = self._centred(D.dtype)
        gramian = through_kernel(D, centred, bias if mean is None else 0.0)
        if mean is None:
            return gramian
        sums = D.sum(1)
        cross = sums @ ((centred @ mean) @ D).T
        return gramian + cross + cross.T + (mean @ mean + bias) * (sums @ sums.T)

    def centred_kernel(self, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Return ``C Cᵀ`` and the pair μ, ``C μ``; or, if inputs lie close to zero, ``A Aᵀ`` and ``None``."""
        mean, centred = self._centred(dtype)
        return centred @ centred.T, None if mean is None else (mean, centred @ mean)

    def _centred(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        inputs = self.inputs(dtype)
        if not self._is_far(inputs):
            return None, inputs
        mean = inputs.mean(0)
        return mean, inputs - mean

    def _is_far(self, inputs: Tensor) -> bool:
        """Return whether inputs lie far from zero; assumed on a device, for which a check would wait."""
        if inputs.device.type != "cpu":
            return True
        mean = inputs.mean(0)
        return float(mean @ mean) * len(inputs) > _FAR * float(inputs.norm()) ** 2


@dataclass(eq=False)
class _Convolution(Operand):
    """The images of a two-dimensional convolution: ``A`` has one patch per output pixel, channels last."""

    size: tuple[int, ...]
    """Height and width of the output."""
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def wasteful(self) -> bool:
        # A CPU's weight gradient pads channels to blocks of 16, except in a first layer, which has few.
        q, channels = self.shape[:2]
        blocks = -(-q // 16) * -(-channels // 16)
        fits = self.positions * self.p <= _LARGEST
        return self.stored.device.type == "cpu" and channels > 4 and 2 * q * channels <= 256 * blocks and fits

    def inputs(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        # With channels last each line of a patch is contiguous, and copying is several times as fast as unfold.
        vertical, horizontal = self.padding
        images = torch.nn.functional.pad(self.stored.to(dtype), (horizontal, horizontal, vertical, vertical))
        images = images.permute(0, 2, 3, 1).contiguous()
        example, row, column, channel = images.stride()
        (down, right), (dilated, wide) = self.stride, self.dilation
        _, channels, *kernel = self.shape
        patches = images.as_strided(
            (len(images), *self.size, *kernel, channels),
            (example, down * row, right * column, dilated * row, wide * column, channel),
        )
        if out is None:
            return patches.reshape(self.positions, self.p)
        out.view(patches.shape).copy_(patches)
        return out

    def matrix(self, gradient: Tensor) -> Tensor:
        return gradient.movedim(2, -1).reshape(len(gradient), self.positions, self.q)

    def as_weights(self, products: Tensor) -> Tensor:
        _, channels, *kernel = self.shape
        return products.unflatten(-1, (*kernel, channels)).movedim(-1, -3)

    def gramian(self, D: Tensor, bias: float) -> Tensor:
        """Centre each pixel too, since patches at a padded border lie far from the mean patch.

        ``A = C + P + 1 νᵀ``, where ν are the means of the channels, and P those of ``A − 1 νᵀ`` over the images.
        """
        batch = len(self.stored)
        if batch == 1 or not any(self.padding) or not self._is_far(self.stored):
            return super().gramian(D, bias)
        centre = self.stored.to(D.dtype).mean((0, 2, 3)).repeat(self.p // self.stored.shape[1])
        C = (self.inputs(D.dtype) - centre).unflatten(0, (batch, -1))
        pixels = C.mean(0)
        C = (C - pixels).flatten(0, 1)
        of_pixels = D.unflatten(1, (batch, -1)).sum(1)
        sums = of_pixels.sum(1)
        images = inner_products(D.flatten(1), ((C @ C.T) @ D).flatten(1))
        means = inner_products(of_pixels.flatten(1), ((pixels @ pixels.T) @ of_pixels).flatten(1))
        both = inner_products(D.flatten(1), ((C @ pixels.T) @ of_pixels).flatten(1))
        both = both + ((C @ centre) @ D + (pixels @ centre) @ of_pixels) @ sums.T
        return images + means + both + both.T + (centre @ centre + bias) * (sums @ sums.T)

    def _is_far(self, inputs: Tensor) -> bool:
        if inputs.device.type != "cpu":
            return True
        # Patches also contain the zeros of the padding.
        means = self.stored.mean((0, 2, 3), dtype=torch.float32)
        return float(means @ means) > _FAR * float(self.stored.float().square().mean()) * len(means)


@dataclass(eq=False)
class _Embedding(Operand):
    """The indices of an embedding: ``A`` is one-hot, and zero at the index of the padding."""

    padding: int
    """The index without a gradient; -1 for none."""

    dense: ClassVar[bool] = False
    units: ClassVar[int] = 1

    def inputs(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        ones = torch.nn.functional.one_hot(self.stored, self.p).to(dtype)
        if self.padding >= 0:
            ones[:, self.padding] = 0.0
        return ones

    def product(self, D: Tensor) -> Tensor:
        if D.ndim > 2:
            return torch.stack([self.product(of_row) for of_row in D])
        total = D.new_zeros(self.p, D.shape[1]).index_add_(0, self.stored, D)
        if self.padding >= 0:
            total[self.padding] = 0.0
        return total

    def as_weights(self, products: Tensor) -> Tensor:
        return products.mT

    def gramian(self, D: Tensor, bias: float) -> Tensor:
        # If the sum of an index's gradients cancels, products of single positions would leave only rounding errors.
        D = D * (self.stored != self.padding)[:, None]
        ordered, order = self.stored.sort()
        place = torch.nn.functional.pad(ordered[1:] != ordered[:-1], (1, 0)).cumsum(0)
        sums = torch.zeros_like(D).index_add_(1, place, D[:, order])
        return inner_products(sums.flatten(1), sums.flatten(1))

    def centred_kernel(self, dtype: torch.dtype) -> tuple[Tensor, None]:
        same = self.stored[:, None] == self.stored
        return (same & (self.stored != self.padding)).to(dtype), None


OPERATIONS = {"AddmmBackward0", "MmBackward0", "ConvolutionBackward0", "EmbeddingBackward0"}
"""The operations for which :func:`operand_of` may return an operand."""


def operand_of(use: Use, shape: torch.Size) -> Operand | None:
    """Return the inputs that the graph saved for a weight of a shape; ``None`` if its gradient is no such product.

    Inputs that a checkpoint would have to recompute are left alone.
    """
    node = use.node
    match use.operation, use.place, use.transposed:
        case "AddmmBackward0", 2, True if node._saved_alpha == 1:
            inputs = saved(node, "mat1")
            return None if inputs is None else Operand(shape, inputs, 1, *shape)
        case "MmBackward0", 1, True:
            inputs = saved(node, "self")
            return None if inputs is None else Operand(shape, inputs, 1, *shape)
        case "ConvolutionBackward0", 1, False if _is_plain(node):
            images, size = saved(node, "input"), tuple(node._input_metadata[0].shape[2:])
            geometry = [tuple(getattr(node, f"_saved_{name}")) for name in ("padding", "dilation", "stride")]
            if images is not None:
                p = shape[1:].numel()
                return _Convolution(shape, images, math.prod(size), shape[0], p, size, *geometry)
        case "EmbeddingBackward0", 0, False if not (node._saved_scale_grad_by_freq or node._saved_sparse):
            indices, padding = saved(node, "indices"), node._saved_padding_idx
            if indices is not None:
                # The graph saves -1, which stands for no padding, as an unsigned number.
                padding = padding if padding < shape[0] else -1
                return _Embedding(shape, indices.flatten(), 1, shape[1], shape[0], padding)
    return None


def _is_plain(node: Node) -> bool:
    """Return whether a convolution is two-dimensional, ungrouped, and padded by numbers."""
    padding = node._saved_padding
    two = not isinstance(padding, str) and len(padding) == 2
    return two and node._saved_groups == 1 and not node._saved_transposed


def saved(node: Node, name: str) -> Tensor | None:
    """Return a tensor that the graph saved; ``None`` if it was changed, packed or is to be recomputed."""
    if getattr(getattr(node, f"_raw_saved_{name}"), "unpack_hook", None) is not None:
        return None
    try:
        first, second = (getattr(node, f"_saved_{name}") for _ in range(2))
    except RuntimeError:  # changed in place; the backward pass will raise this error
        return None
    # Without hooks both are the same memory; older versions of torch do not show their hooks.
    same = first.layout == torch.strided and first.data_ptr() == second.data_ptr()
    return first.detach() if same else None
