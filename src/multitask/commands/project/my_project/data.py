"""Values of a wave, to be predicted from the position."""

import torch

from multitask.data.base import DataModule, Split


class Waves(DataModule):
    """Points of the plane with the value of a wave there, ``scalar``, and whether it is positive, ``side``.

    Args:
        examples: The number of examples of each split.
        noise: Standard deviation of the noise added to the values.
        options: Arguments of :class:`multitask.data.base.DataModule`.
    """

    def __init__(self, examples: int = 2000, noise: float = 0.1, **options: int) -> None:
        super().__init__(**options)
        self.examples = examples
        self.noise = noise

    def load(self) -> dict[str, Split]:
        """Return the three splits, which do not depend on the run's seed."""
        return {split: self._draw(number) for number, split in enumerate(("train", "val", "test"))}

    def _draw(self, seed: int) -> Split:
        generator = torch.Generator().manual_seed(seed)
        points = torch.randn(self.examples, 2, generator=generator)
        wave = torch.sin(3 * points[:, 0]) + torch.cos(2 * points[:, 1])
        noise = self.noise * torch.randn(self.examples, generator=generator)
        return {"inputs": points, "scalar": wave + noise, "side": (wave > 0).long()}
