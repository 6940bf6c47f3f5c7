"""Energies and forces of one molecule along simulated trajectories."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
import torch

from multitask.data.base import InMemory, Split
from multitask.data.loading import SPLITS, check_counts
from multitask.extras import imported
from multitask.randomness import derived_seed


@dataclass(eq=False)
class Molecule(InMemory):
    """Geometries of a molecule at a given temperature, from ASE's Langevin dynamics with its EMT potential.

    ``inputs``: ``numbers`` ``[atoms]`` and ``positions`` ``[atoms, 3]`` in ångström; ``energy`` ``[1]`` in eV;
    ``forces`` ``[atoms, 3]``, its negative gradient, in eV/Å. Each split is a separate trajectory. The trajectories
    are computed on first use and stored in a file whose name contains a hash of their settings.

    "The Atomic Simulation Environment" (Larsen et al., 2017). The potential's parameters for hydrogen, carbon,
    nitrogen and oxygen are not chemically accurate: the energies are a learning problem, not reference data.

    Args:
        path: The folder of the stored trajectories.
        molecule: A name that ``ase.build.molecule`` knows.
        temperature: Temperature in kelvin.
        timestep: Time step in femtoseconds.
        every: Number of time steps between two geometries.
        warm_up: Number of time steps before the first geometry.
        examples: Number of geometries for train, validation and test.
        trajectory_seed: Seed of the trajectories: fixed, so that runs of all seeds share one test set.
    """

    path: str
    molecule: str = "CH3CH2OH"
    temperature: float = 300.0
    timestep: float = 0.5
    every: int = 20
    warm_up: int = 2000
    examples: Sequence[int] = (400, 100, 100)
    trajectory_seed: int = 0
    _: KW_ONLY
    batch_size: int | None = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self.examples)
        for key in ("temperature", "timestep", "every"):
            if getattr(self, key) <= 0:
                raise ValueError(f"data.{key}={getattr(self, key)} must be above 0.")

    def load(self) -> dict[str, Split]:
        """Read the trajectories; compute and store them with ASE if they are not stored yet."""
        keys = ("molecule", "temperature", "timestep", "every", "warm_up", "trajectory_seed")
        settings = {key: getattr(self, key) for key in keys} | {"examples": list(self.examples)}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        file = Path(self.path) / f"{self.molecule}_{digest}.npz"
        if not file.exists():
            computed = {
                f"{name}/{key}": array
                for name, count in zip(SPLITS, self.examples, strict=True)
                for key, array in self._trajectory(name, count).items()
            }
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary = file.with_name(f".{os.getpid()}_{file.name}")
            np.savez_compressed(temporary, **computed)  # type: ignore[arg-type]
            temporary.replace(file)  # atomically: another run may read it at the same time
        with np.load(file) as stored:
            arrays = {key: torch.from_numpy(stored[key]) for key in stored}
        return {
            name: {
                "inputs": {
                    "numbers": arrays[f"{name}/numbers"].expand(count, -1).clone(),
                    "positions": arrays[f"{name}/positions"].float(),
                },
                "energy": arrays[f"{name}/energy"][:, None].float(),
                "forces": arrays[f"{name}/forces"].float(),
            }
            for name, count in zip(SPLITS, self.examples, strict=True)
        }

    def _trajectory(self, name: str, count: int) -> dict[str, np.ndarray]:
        """Return the atomic numbers, and positions, energies and forces at ``count`` times."""
        imported("ase", "molecules", "data=molecule")
        from ase import units
        from ase.build import molecule
        from ase.calculators.emt import EMT
        from ase.md.langevin import Langevin

        generator = np.random.default_rng(derived_seed("trajectory", self.trajectory_seed, name))
        try:
            atoms = molecule(self.molecule)
        except KeyError:
            raise ValueError(f"data.molecule={self.molecule} is unknown to ase.build.molecule.") from None
        atoms.calc = EMT()
        energy = self.temperature * units.kB
        atoms.set_momenta(
            generator.standard_normal((len(atoms), 3)) * np.sqrt(atoms.get_masses()[:, None] * energy)
        )
        dynamics = Langevin(
            atoms,
            self.timestep * units.fs,
            temperature_K=self.temperature,
            friction=0.01 / units.fs,
            fixcm=False,
            rng=generator,
        )
        dynamics.run(self.warm_up)
        positions, energies, forces = [], [], []
        for _ in range(count):
            dynamics.run(self.every)
            positions.append(atoms.get_positions() - atoms.get_center_of_mass())
            energies.append(atoms.get_potential_energy())
            forces.append(atoms.get_forces())
        return {
            "numbers": atoms.get_atomic_numbers().astype(np.int64),
            "positions": np.stack(positions),
            "energy": np.array(energies),
            "forces": np.stack(forces),
        }
