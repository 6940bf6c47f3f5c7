"""Whole sweeps through the scripts."""

from pathlib import Path

import numpy as np
import pytest


def write_arrays(folder: Path) -> Path:
    """Write a file with a hundred examples of two regression tasks."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(100, 4))
    path = folder / "arrays.npz"
    np.savez(path, inputs=inputs, a=inputs.sum(1), b=inputs[:, 0] ** 2)
    return path


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """The test's own file."""
    return write_arrays(tmp_path)
