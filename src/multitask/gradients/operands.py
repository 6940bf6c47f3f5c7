"""Operations whose weight gradient is a product ``Dᵀ A`` of their output gradients and inputs.

One row a *position*: an example, a token, a pixel. ``A`` has p columns, what one position reads, ``D`` has q,
what it writes, so that the weight is ``[q, p]``.
"""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Self

import torch
from torch import Tensor

from multitask.gradients.graph import Node
from multitask.gradients.kernels import through_kernel
from multitask.gradients.rows import inner_products
from multitask.gradients.uses import Use

# From which share of their squares on the inputs' mean is taken off: below it ten roundings are lost at most.
_FAR = 0.9
# Numbers that the patches of a convolution may take where they are no must.
_LARGEST = 2**23


class Operand(ABC):
    """The inputs ``A``, ``[positions, p]``, of an operation, stored in whichever way is small.

    Args:
        shape: The shape of the operation's weight.
        stored: What ``A`` is made of, one entry per position, or per image.
        each: The positions, rows of ``A``, of one entry.
        q: The columns of ``D``.
        p: The columns of ``A``.
    """

    dense = True
    """Whether making ``A`` and multiplying by it costs p operations a position."""
    units = 0
    """The dimension of the weight that the columns of ``D`` number."""

    def __init__(self, shape: torch.Size, stored: Tensor, each: int, q: int, p: int) -> None:
        self.shape = shape
        self.stored = stored
        self.each = each
        self.positions = len(stored) * each
        self.q = q
        self.p = p

    @property
    def kind(self) -> Hashable:
        """What operations have in common whose positions can stand one after the other's."""
        return type(self).__name__, tuple(self.shape), tuple(self.stored.shape[1:])

    @abstractmethod
    def on(self, stored: Tensor) -> Self:
        """Return the same operation on other inputs."""

    @property
    def wasteful(self) -> bool:
        """Whether the product is a faster way to a row than the operation's own gradient."""
        return False

    def matrix(self, gradient: Tensor) -> Tensor:
        """Return output gradients, ``[k, *output]``, as ``D``, ``[k, positions, q]``."""
        return gradient.reshape(len(gradient), self.positions, self.q)

    @abstractmethod
    def inputs(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """Return ``A``, shape ``[positions, p]``; in ``out`` if it has to be made."""

    def lies_far(self, inputs: Tensor) -> bool:
        """Return whether products of the inputs are mostly those of their means; on a device, without a look."""
        if inputs.device.type != "cpu":
            return True
        mean = inputs.mean(0)
        return float(mean @ mean) * len(inputs) > _FAR * float(inputs.norm()) ** 2

    def centred(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return the columns' means μ, ``[p]``, and of ``C = A − 1 μᵀ`` the kernel ``C Cᵀ`` and ``C μ``.

        Where the inputs lie close to zero, so that nothing is gained by it, μ is ``None`` and C is ``A``.
        """
        mean, inputs, along = self._centred(dtype)
        return mean, inputs @ inputs.T, along

    def _centred(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor, Tensor]:
        inputs = self.inputs(dtype)
        if not self.lies_far(inputs):
            return None, inputs, inputs
        mean = inputs.mean(0)
        centred = inputs - mean
        return mean, centred, centred @ mean

    def gramian(self, D: Tensor, bias: float) -> Tensor:
        """Return ``⟨D_i, (A Aᵀ + bias · 1 1ᵀ) D_j⟩``, shape ``[k, k]``; ``D`` is ``[k, positions, q]``.

        With ``A = C + 1 μᵀ``, where μ are the means of its columns, it is ``⟨D_i, C Cᵀ D_j⟩`` and three products
        of sums over positions. Where a row cancels over the batch and inputs lie far from zero, only these sums
        are large: the products of what is far from zero would leave nothing but rounding.
        """
        mean, centred, along = self._centred(D.dtype)
        gramian = through_kernel(D, centred, bias if mean is None else 0.0)
        if mean is None:
            return gramian
        sums = D.sum(1)
        cross = sums @ (along @ D).T
        return gramian + cross + cross.T + (mean @ mean + bias) * (sums @ sums.T)

    def product(self, D: Tensor) -> Tensor:
        """Return ``Dᵀ A`` in the shape of the weight; ``D`` is ``[positions, q]``."""
        return self.as_weights(D.T @ self.inputs(D.dtype))

    def products(self, D: Tensor) -> Tensor:
        """Return all ``D_iᵀ A``, ``[k, *shape]``; ``D`` is ``[k, positions, q]``."""
        return self.as_weights(D.mT @ self.inputs(D.dtype))

    def as_weights(self, products: Tensor) -> Tensor:
        """Return products ``[…, q, p]`` in the shape of the weight, ``[…, *shape]``, or of some of its units."""
        return products.unflatten(-1, self.shape[1:])


class LinearOperand(Operand):
    """Inputs of ``x Wᵀ``: they are ``A``."""

    def __init__(self, shape: torch.Size, inputs: Tensor) -> None:
        super().__init__(shape, inputs, 1, shape[0], shape[1])

    def on(self, stored: Tensor) -> Self:
        """Return the same operation on other inputs."""
        return type(self)(self.shape, stored)

    def inputs(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """Return the inputs, shape ``[positions, p]``."""
        return self.stored.to(dtype)


class ConvolutionOperand(Operand):
    """Inputs of a two-dimensional convolution: ``A`` has one patch a row."""

    def __init__(self, shape: torch.Size, images: Tensor, geometry: dict[str, tuple[int, ...]]) -> None:
        self._geometry = geometry
        self._size = size = [
            (n + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for n, kernel, pad, dilation, stride in zip(
                images.shape[2:],
                shape[2:],
                geometry["padding"],
                geometry["dilation"],
                geometry["stride"],
                strict=True,
            )
        ]
        super().__init__(shape, images, size[0] * size[1], shape[0], shape[1:].numel())

    @property
    def kind(self) -> Hashable:
        """See :class:`Operand`."""
        return super().kind, tuple(self._geometry.items())

    def on(self, stored: Tensor) -> Self:
        """Return the same operation on other images."""
        return type(self)(self.shape, stored, self._geometry)

    def matrix(self, gradient: Tensor) -> Tensor:
        """Return gradients of images, ``[k, batch, q, height, width]``, pixel by pixel."""
        return gradient.movedim(2, -1).reshape(len(gradient), self.positions, self.q)

    def inputs(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """Return the patches, shape ``[batch · height · width, p]``, each row by row and channels last.

        So the numbers of a row of a patch follow each other in memory, which makes copying them several times
        as fast as ``unfold``.
        """
        vertical, horizontal = self._geometry["padding"]
        images = torch.nn.functional.pad(
            self.stored.to(dtype), (horizontal, horizontal, vertical, vertical)
        ).permute(0, 2, 3, 1)
        images = images.contiguous()
        example, row, column, channel = images.stride()
        (down, right), (dilated, wide) = self._geometry["stride"], self._geometry["dilation"]
        _, channels, *kernel = self.shape
        patches = images.as_strided(
            (len(images), *self._size, *kernel, channels),
            (example, down * row, right * column, dilated * row, wide * column, channel),
        )
        if out is None:
            return patches.reshape(self.positions, self.p)
        out.view(patches.shape).copy_(patches)
        return out

    def lies_far(self, inputs: Tensor) -> bool:
        """Return whether the images do: patches at a padded border hold zeros, which do not help the others."""
        if inputs.device.type != "cpu":
            return True
        means = self.stored.mean((0, 2, 3), dtype=torch.float32)
        return float(means @ means) > _FAR * float(self.stored.float().square().mean()) * len(means)

    def gramian(self, D: Tensor, bias: float) -> Tensor:
        """Return the Gramian; see :class:`Operand`.

        Patches at a padded border lie far from the mean of all patches, so that means are taken pixel by pixel too:
        ``A = C + P + 1 νᵀ``, where ν are the means of the channels, and P those of ``A − 1 νᵀ`` at each pixel over
        the images.
        """
        batch = len(self.stored)
        if batch == 1 or not any(self._geometry["padding"]) or not self.lies_far(self.stored):
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

    def as_weights(self, products: Tensor) -> Tensor:
        """Return products ``[…, q, p]``, whose channels come last, in the shape of the weight."""
        _, channels, *kernel = self.shape
        return products.unflatten(-1, (*kernel, channels)).movedim(-1, -3)

    @property
    def wasteful(self) -> bool:
        """Whether the CPU's own weight gradient takes more than twice as many operations as the product.

        It computes in blocks of sixteen channels, but for the first layer of a network, which has a few.
        """
        q, channels = self.shape[:2]
        blocks = -(-q // 16) * -(-channels // 16)
        fits = self.positions * self.p <= _LARGEST
        return self.stored.device.type == "cpu" and channels > 4 and 2 * q * channels <= 256 * blocks and fits


class EmbeddingOperand(Operand):
    """Indices of an embedding: ``A`` has a one at the row that was looked up, nothing at the padding."""

    dense = False
    units = 1

    def __init__(self, shape: torch.Size, indices: Tensor, padding: int) -> None:
        super().__init__(shape, indices.reshape(-1), 1, shape[1], shape[0])
        self._padding = padding if padding < shape[0] else -1  # the graph saves «none» as a huge number

    @property
    def kind(self) -> Hashable:
        """See :class:`Operand`."""
        return super().kind, self._padding

    def on(self, stored: Tensor) -> Self:
        """Return the same operation on other indices."""
        return type(self)(self.shape, stored, self._padding)

    def inputs(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """Return the looked up rows as ones among zeros, shape ``[positions, p]``."""
        ones = torch.nn.functional.one_hot(self.stored, self.p).to(dtype)
        if self._padding >= 0:
            ones[:, self._padding] = 0.0
        return ones

    def centred(self, dtype: torch.dtype) -> tuple[Tensor | None, Tensor, Tensor]:
        """Return a one where two positions looked up the same row, ``[positions, positions]``: no means are off."""
        same = self.stored[:, None] == self.stored
        kernel = (same & (self.stored != self._padding)).to(dtype)
        return None, kernel, kernel

    def gramian(self, D: Tensor, bias: float) -> Tensor:
        """Return the products of the sums over the positions that looked up the same row.

        Gradients that cancel in such a sum would leave nothing but rounding in products of single positions.
        """
        D = D * (self.stored != self._padding)[:, None]
        ordered, order = self.stored.sort()
        place = torch.nn.functional.pad(ordered[1:] != ordered[:-1], (1, 0)).cumsum(0)
        sums = torch.zeros_like(D).index_add_(1, place, D[:, order])
        return inner_products(sums.flatten(1), sums.flatten(1))

    def product(self, D: Tensor) -> Tensor:
        """Add each position's gradient to the row that it looked up."""
        total = D.new_zeros(self.p, D.shape[1]).index_add_(0, self.stored, D)
        if self._padding >= 0:
            total[self._padding] = 0.0
        return total

    def products(self, D: Tensor) -> Tensor:
        """Add up each row's gradients; see :meth:`product`."""
        return torch.stack([self.product(of_row) for of_row in D])

    def as_weights(self, products: Tensor) -> Tensor:
        """Return products ``[…, width, rows]`` as embeddings are stored, row by row."""
        return products.mT


OPERATIONS = {"AddmmBackward0", "MmBackward0", "ConvolutionBackward0", "EmbeddingBackward0"}
"""The operations for which :func:`operand_of` may return inputs."""


def operand_of(use: Use, shape: torch.Size) -> Operand | None:
    """Return the inputs that go with a weight of this shape, ``None`` where its gradient is no such product.

    They are what the graph saved for the backward pass. What a checkpoint would have to compute again is
    left alone.
    """
    node = use.node
    match use.operation, use.place, use.transposed:
        case "AddmmBackward0", 2, True if node._saved_alpha == 1:
            inputs = saved(node, "mat1")
            return None if inputs is None else LinearOperand(shape, inputs)
        case "MmBackward0", 1, True:
            inputs = saved(node, "self")
            return None if inputs is None else LinearOperand(shape, inputs)
        case "ConvolutionBackward0", 1, False if _is_plain(node):
            images = saved(node, "input")
            names = ("padding", "dilation", "stride")
            geometry = {name: tuple(getattr(node, f"_saved_{name}")) for name in names}
            return None if images is None else ConvolutionOperand(shape, images, geometry)
        case "EmbeddingBackward0", 0, False if not (node._saved_scale_grad_by_freq or node._saved_sparse):
            indices = saved(node, "indices")
            return None if indices is None else EmbeddingOperand(shape, indices, node._saved_padding_idx)
    return None


def _is_plain(node: Node) -> bool:
    """Return whether a convolution is two-dimensional, ungrouped, and padded by numbers."""
    padding = node._saved_padding
    two = not isinstance(padding, str) and len(padding) == 2
    return two and node._saved_groups == 1 and not node._saved_transposed


def saved(node: Node, name: str) -> Tensor | None:
    """Return what the graph saved, ``None`` where it is changed, packed away or to be computed again."""
    if getattr(getattr(node, f"_raw_saved_{name}"), "unpack_hook", None) is not None:
        return None
    try:
        first, second = (getattr(node, f"_saved_{name}") for _ in range(2))
    except RuntimeError:  # changed in place since: the backward pass of the row says so
        return None
    # Without hooks both are one; older versions of torch do not show their hooks.
    return first.detach() if first.data_ptr() == second.data_ptr() else None
