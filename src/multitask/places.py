"""The folders of configs and embedded data, and the one in which a command works: known before torch is loaded."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent
_CHECKOUT = _PACKAGE.parents[1]
# A wheel has both inside the package; setup.py puts them there.
_INSTALLED = (_PACKAGE / "configs").is_dir()

CONFIGS = (_PACKAGE if _INSTALLED else _CHECKOUT) / "configs"
"""The folder of the configs."""

EMBEDDED = _PACKAGE / "embedded" if _INSTALLED else _CHECKOUT / "data"
"""The folder of the data sets that come with the package."""

EMBEDDED_FILES = ("abalone.csv.gz", "fashion_mnist_5k.npz", "mnist_5k.npz")
"""Their names in it."""

ROOT = "MULTITASK_ROOT"
"""The environment variable in which the command ``multitask`` tells its processes :func:`root`."""


def root() -> Path:
    """Return the folder for logs and data: that of the checkout, or the current one for the command ``multitask``."""
    if given := os.environ.get(ROOT):
        return Path(given)
    return Path.cwd() if _INSTALLED else _CHECKOUT
