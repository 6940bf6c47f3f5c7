"""Fixtures for tests that run whole sweeps."""

from pathlib import Path

import numpy as np
import pytest


def write_arrays(folder: Path) -> Path:
    """Write 100 examples of two regression tasks and return the file."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(100, 4))
    path = folder / "arrays.npz"
    np.savez(path, inputs=inputs, a=inputs.sum(1), b=inputs[:, 0] ** 2)
    return path


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """A data file for the test alone."""
    return write_arrays(tmp_path)
