"""Loggers that extras install, checked without importing them."""

from collections.abc import Iterable
from importlib.util import find_spec

from multitask.errors import ConfigError

# The package of each logger, and the argument of pip install.
_PACKAGES = {
    "tensorboard": ("tensorboard", '-e ".[tensorboard]"'),
    "mlflow": ("mlflow", '-e ".[mlflow]"'),
    "comet": ("comet_ml", '-e ".[comet]"'),
    "aim": ("aim", "aim"),
}


def check_installed(loggers: Iterable[str]) -> None:
    """Refuse a logger whose package is not installed.

    Args:
        loggers: The keys of the config's ``logger``.

    Raises:
        ConfigError: If one is missing, naming the logger and what to install.
    """
    for name in loggers:
        package, install = _PACKAGES.get(name, ("multitask", ""))
        if find_spec(package) is None:
            raise ConfigError(
                f"logger={name} needs the package {package}; install it with pip install {install}."
            )
