"""Fixtures for tests that run the scripts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.integration.script_runner import Scripts
from tests.integration.small import Small
from tests.integration.wandb_server import WandbServer


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    """Runs scripts in the test's own folder."""
    return Scripts(tmp_path)


@pytest.fixture(scope="session")
def arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 examples of six inputs and two noisy targets, in an ``.npz`` file."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(200, 6)).astype(np.float32)
    noise = generator.normal(size=(2, 200)).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "arrays.npz"
    np.savez(path, inputs=inputs, a=inputs @ inputs[0] + noise[0], b=-((inputs @ inputs[1]) ** 2) + noise[1])
    return path


@pytest.fixture
def small(scripts: Scripts, arrays: Path) -> Small:
    """Runs of ``experiment=small``."""
    return Small(scripts, arrays)


@pytest.fixture
def server() -> Iterator[WandbServer]:
    server = WandbServer()
    yield server
    server.close()
