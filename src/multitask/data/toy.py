"""The data of a toy problem: random displacements of the point."""

import torch

from multitask.data.base import DataModule, Split
from multitask.randomness import derived_seed


class Toy(DataModule):
    """One displacement of the point per step, ``inputs`` ``[steps, 2]``, and the target ``origin``, zeros.

    Args:
        steps: Number of steps per epoch.
        noise: Standard deviation of the displacements; 0 for exact gradients.
        seed: Seed of the displacements and their order.
    """

    def __init__(self, steps: int = 1000, noise: float = 0.0, seed: int = 0) -> None:
        super().__init__(batch_size=1, eval_batch_size=steps, seed=seed)
        if steps < 1:
            raise ValueError(f"data.steps={steps} must be 1 or more.")
        self.steps = steps
        self.noise = noise

    def load(self) -> dict[str, Split]:
        """Draw the displacements of one epoch."""
        generator = torch.Generator().manual_seed(derived_seed("toy", self.seed))
        drawn = self.noise * torch.randn(self.steps, 2, generator=generator)
        return {"train": {"inputs": drawn, "origin": torch.zeros(self.steps, 2)}}
