"""Whole sweeps through the scripts."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """A file with a hundred examples of two regression tasks."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(100, 4))
    path = tmp_path / "arrays.npz"
    np.savez(path, inputs=inputs, a=inputs.sum(1), b=inputs[:, 0] ** 2)
    return path
