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

    @property
    def _period(self) -> int:
        """The number of means that are subtracted: one, or one per pixel."""
        return 1

    def on(self, stored: Tensor) -> Self:
        """Return the same operation with other inputs."""
        return replace(self, stored=stored)

    def inputs(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """Return ``A``, shape ``[positions, p]``; in ``out`` if it has to be formed."""
        return self.stored.to(dtype)

    def matrix(self, gradient: Tensor) -> Tensor:
        """Return output gradients, ``[k, *output]``, as ``D``, ``[k, positions, q]``."""
        return gradient.movedim(2, -1).reshape(len(gradient), self.positions, self.q)

    def product(self, D: Tensor) -> Tensor:
        """Return ``Dᵀ A``, shape ``[…, *shape]``, of ``D``, ``[…, positions, q]``."""
        return self.as_weights(D.mT @ self.inputs(D.dtype))

    def as_weights(self, products: Tensor) -> Tensor:
        """Return products ``[…, q, p]``, or those of some columns of ``D``, in the shape of the weight."""
        _, channels, *kernel = self.shape
        return products.unflatten(-1, (*kernel, channels)).movedim(-1, -1 - len(kernel))

    def gradients(
        self, D: Tensor, parameters: Sequence[Tensor], inputs: Tensor | None = None
    ) -> list[Tensor]:
        """Return the gradients ``Dᵀ A`` of the weight and ``Dᵀ 1`` of the bias, if any; ``inputs`` may give ``A``."""
        weight = self.product(D) if inputs is None else self.as_weights(D.mT @ inputs)
        return [weight, D.sum(-2)][: len(parameters)]

    def gramian(self, D: Tensor, bias: float) -> Tensor:
        """Return ``⟨D_i, (A Aᵀ + bias · 1 1ᵀ) D_j⟩``, shape ``[k, k]``, of ``D``, ``[k, positions, q]``.

        If inputs lie far from zero and a row nearly cancels over the batch, products of the inputs themselves would
        leave only rounding errors. With ``A = C + 1 μᵀ``, where μ are the means of the columns, a row is ``D_iᵀ C``
        plus ``(D_iᵀ 1) μᵀ``, a row of a single position. Patches have one mean per pixel first.
        """
        A = self.inputs(D.dtype)
        parts = []
        for period in sorted({self._period, 1}, reverse=True) if self._is_far(A) else ():
            sums, means = D.unflatten(1, (-1, period)).sum(1), A.unflatten(0, (-1, period)).mean(0)
            C = (A.unflatten(0, (-1, period)) - means).flatten(0, 1)
            across = inner_products(((means @ C.T) @ D).flatten(1), sums.flatten(1))
            parts += [through_kernel(D, C, 0.0), across, across.T]
            D, A = sums, means
        return sum(parts, through_kernel(D, A, bias))

    def centred_kernel(self, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Return ``C Cᵀ`` and the pair μ, ``C μ``, where ``A = C + 1 μᵀ`` and μ are the means of the columns.

        If inputs lie close to zero, return ``A Aᵀ`` and ``None``.
        """
        A = self.inputs(dtype)
        if not self._is_far(A):
            return A @ A.T, None
        mean = A.mean(0)
        C = A - mean
        return C @ C.T, (mean, C @ mean)

    def _is_far(self, A: Tensor) -> bool:
        """Return whether inputs lie far from zero; assumed on a device, for which a check would wait."""
        if A.device.type != "cpu":
            return True
        images = A.reshape(len(A) // self._period, self._period * self.p)
        sums = images.sum(0)
        return float(sums @ sums) > _FAR * len(images) * float(torch.linalg.vector_norm(A)) ** 2


@dataclass(eq=False)
class _Convolution(Operand):
    """The images of a two-dimensional convolution: ``A`` has one patch per output pixel, channels last."""

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

    @property
    def _period(self) -> int:
        # Patches at a padded border lie far from the mean patch, but not from those of the other images.
        return self.each if any(self.padding) and len(self.stored) > 1 else 1

    def inputs(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        # With channels last each line of a patch is contiguous, and copying is several times as fast as unfold.
        vertical, horizontal = self.padding
        images = torch.nn.functional.pad(self.stored.to(dtype), (horizontal, horizontal, vertical, vertical))
        patches = images.permute(0, 2, 3, 1).contiguous()
        geometry = zip(self.shape[2:], self.dilation, self.stride, strict=True)
        for dim, (kernel, dilation, stride) in enumerate(geometry, 1):
            patches = patches.unfold(dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
        patches = patches.movedim(3, -1)
        if out is None:
            return patches.reshape(self.positions, self.p)
        out.view(patches.shape).copy_(patches)
        return out


@dataclass(eq=False)
class _Embedding(Operand):
    """The indices of an embedding: ``A`` is one-hot."""

    padding: int
    """The index whose output gradients are ignored; -1 for none."""

    dense: ClassVar[bool] = False
    units: ClassVar[int] = 1

    def inputs(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        return torch.nn.functional.one_hot(self.stored, self.p).to(dtype)

    def matrix(self, gradient: Tensor) -> Tensor:
        D = gradient.reshape(len(gradient), self.positions, self.q)
        return D if self.padding < 0 else D.masked_fill((self.stored == self.padding)[:, None], 0.0)

    def product(self, D: Tensor) -> Tensor:
        return D.new_zeros(*D.shape[:-2], self.p, D.shape[-1]).index_add_(-2, self.stored, D)

    def as_weights(self, products: Tensor) -> Tensor:
        return products.mT

    def gramian(self, D: Tensor, bias: float) -> Tensor:
        # If the sum of an index's gradients cancels, products of single positions would leave only rounding errors.
        first = torch.searchsorted(self.stored.sort().values, self.stored)
        sums = torch.zeros_like(D).index_add_(1, first, D).flatten(1)
        return inner_products(sums, sums)

    def centred_kernel(self, dtype: torch.dtype) -> tuple[Tensor, None]:
        return (self.stored[:, None] == self.stored).to(dtype), None


OPERATIONS = {"AddmmBackward0", "MmBackward0", "ConvolutionBackward0", "EmbeddingBackward0"}
"""The operations for which :func:`operand_of` may return an operand."""


def operand_of(use: Use, shape: torch.Size) -> Operand | None:
    """Return the inputs that the graph saved for a weight of a shape; ``None`` if its gradient is no such product.

    Inputs that a checkpoint would have to recompute are left alone.
    """
    node = use.node
    match use.operation, use.place, use.transposed:
        case "AddmmBackward0", 2, True if node._saved_alpha == 1 and (A := saved(node, "mat1")) is not None:
            return Operand(shape, A, 1, *shape)
        case "MmBackward0", 1, True if (A := saved(node, "self")) is not None:
            return Operand(shape, A, 1, *shape)
        case "ConvolutionBackward0", 1, False if _is_plain(node) and (A := saved(node, "input")) is not None:
            geometry = [tuple(getattr(node, f"_saved_{name}")) for name in ("padding", "dilation", "stride")]
            pixels = math.prod(node._input_metadata[0].shape[2:])
            return _Convolution(shape, A, pixels, shape[0], shape[1:].numel(), *geometry)
        case "EmbeddingBackward0", 0, False if _is_plain(node) and (A := saved(node, "indices")) is not None:
            # The graph saves -1, which stands for no padding, as an unsigned number.
            padding = node._saved_padding_idx if node._saved_padding_idx < shape[0] else -1
            return _Embedding(shape, A.flatten(), 1, shape[1], shape[0], padding)
    return None


def _is_plain(node: Node) -> bool:
    """Return whether a convolution is two-dimensional and ungrouped, or an embedding's gradient dense and unscaled."""
    if node.name() == "EmbeddingBackward0":
        return not (node._saved_scale_grad_by_freq or node._saved_sparse)
    return len(node._saved_padding) == 2 and node._saved_groups == 1 and not node._saved_transposed


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
