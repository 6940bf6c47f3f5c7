"""Paths of configs, embedded data, and the working folder of a command; does not import torch."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent
_CHECKOUT = _PACKAGE.parents[1]
# setup.py copies both folders into the package of a wheel.
_INSTALLED = (_PACKAGE / "configs").is_dir()

CONFIGS = (_PACKAGE if _INSTALLED else _CHECKOUT) / "configs"
"""The folder of the configs."""

EMBEDDED = _PACKAGE / "embedded" if _INSTALLED else _CHECKOUT / "data"
"""The folder of the data sets included in the package."""

EMBEDDED_FILES = ("abalone.csv.gz", "fashion_mnist_5k.npz", "mnist_5k.npz", "speeches.tsv.gz")
"""Their names in it."""

ROOT = "MULTITASK_ROOT"
"""The environment variable by which the command ``multitask`` passes :func:`root` to its processes."""


def root() -> Path:
    """Return the folder for logs and data: the checkout, or the current folder for the command ``multitask``."""
    if given := os.environ.get(ROOT):
        return Path(given)
    return Path.cwd() if _INSTALLED else _CHECKOUT
