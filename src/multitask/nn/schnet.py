"""A trunk for molecules."""

import torch
from torch import Tensor, nn

_LARGEST_NUMBER = 9  # fluorine


class SchNet(nn.Module):
    """Atoms ``[batch, atoms, 4]`` (atomic number, position in ångström) → features ``[batch, width]``.

    For derivatives with respect to the positions, ``numbers`` ``[batch, atoms]`` and ``positions``
    ``[batch, atoms, 3]`` are separate inputs. Each layer updates an atom's features by those of all other atoms,
    filtered by distance; the molecule's features are the sum over its atoms. They are invariant to translation,
    rotation and permutation. (SchNet: A Continuous-Filter Convolutional Neural Network for Modeling Quantum
    Interactions, 2017.)

    Args:
        width, layers: Width of the features, and number of layers.
        cutoff: Distance in ångström beyond which atoms do not interact.
        centres: Number of radial basis functions between 0 and the cutoff.
    """

    offsets: Tensor

    def __init__(self, width: int = 64, layers: int = 3, cutoff: float = 10.0, centres: int = 50) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.register_buffer("offsets", torch.linspace(0, cutoff, centres), persistent=False)
        self.embedding = nn.Embedding(_LARGEST_NUMBER + 1, width, padding_idx=0)
        self.filters = nn.ModuleList(
            nn.Sequential(nn.Linear(centres, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(layers)
        )
        self.incoming = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.outgoing = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(layers)
        )

    def forward(
        self, atoms: Tensor | None = None, numbers: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """Return the features of each molecule."""
        if atoms is not None:
            numbers, positions = atoms[..., 0].long(), atoms[..., 1:]
        assert numbers is not None
        assert positions is not None
        present = numbers > 0
        # Clamped, since the gradient of an atom's distance to itself is undefined.
        distances = (positions[:, :, None] - positions[:, None]).square().sum(-1).clamp(min=1e-12).sqrt()
        pairs = present[:, :, None] & present[:, None] & (distances < self.cutoff)
        pairs &= ~torch.eye(numbers.shape[1], dtype=torch.bool, device=numbers.device)
        spacing = self.cutoff / (len(self.offsets) - 1)
        basis = torch.exp(-0.5 * ((distances[..., None] - self.offsets) / spacing).square())
        envelope = 0.5 * (torch.cos(distances * torch.pi / self.cutoff) + 1) * pairs
        features = self.embedding(numbers)
        for filters, incoming, outgoing in zip(self.filters, self.incoming, self.outgoing, strict=True):
            weights = filters(basis) * envelope[..., None]
            features = features + outgoing(torch.einsum("bijw,bjw->biw", weights, incoming(features)))
        return (features * present[..., None]).sum(dim=1)
