"""A trunk for molecules."""

import torch
from torch import Tensor, nn

_LARGEST_NUMBER = 9  # fluorine


class SchNet(nn.Module):
    """Atoms ``[batch, atoms, 4]`` (atomic number, position in ångström) → features ``[batch, width]``.

    For derivatives with respect to the positions, ``numbers`` ``[batch, atoms]`` and ``positions``
    ``[batch, atoms, 3]`` come apart.

    Each atom's features are corrected, layer by layer, by those of all others filtered by their distance;
    their sum over the atoms is the molecule's. Unchanged by moving, turning and renumbering. (SchNet: A
    Continuous-Filter Convolutional Neural Network for Modeling Quantum Interactions, 2017.)

    Args:
        width: Width of the features.
        layers: How many corrections.
        cutoff: Distance in ångström beyond which atoms do not see each other.
        centres: How many distances between 0 and the cutoff a filter is made of.
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
        """Features of each molecule."""
        if atoms is not None:
            numbers, positions = atoms[..., 0].long(), atoms[..., 1:]
        assert numbers is not None
        assert positions is not None
        there, places = numbers > 0, positions
        # Of each to each; the distance to oneself is left out, whose gradient would not be defined.
        distances = (places[:, :, None] - places[:, None]).square().sum(-1).clamp(min=1e-12).sqrt()
        pairs = there[:, :, None] & there[:, None] & (distances < self.cutoff)
        pairs &= ~torch.eye(numbers.shape[1], dtype=torch.bool, device=numbers.device)
        spacing = self.cutoff / (len(self.offsets) - 1)
        basis = torch.exp(-0.5 * ((distances[..., None] - self.offsets) / spacing).square())
        fading = 0.5 * (torch.cos(distances * torch.pi / self.cutoff) + 1) * pairs
        features = self.embedding(numbers)
        for filters, incoming, outgoing in zip(self.filters, self.incoming, self.outgoing, strict=True):
            weights = filters(basis) * fading[..., None]
            features = features + outgoing(torch.einsum("bijw,bjw->biw", weights, incoming(features)))
        return (features * there[..., None]).sum(dim=1)
