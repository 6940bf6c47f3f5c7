"""Loggers that an extra installs, known before anything heavy is imported."""

from collections.abc import Iterable
from importlib.util import find_spec

from multitask.errors import ConfigError

# The package of each, and what to install.
_PACKAGES = {
    "tensorboard": ("tensorboard", '-e ".[tensorboard]"'),
    "mlflow": ("mlflow", '-e ".[mlflow]"'),
    "comet": ("comet_ml", '-e ".[comet]"'),
    "aim": ("aim", "aim"),
}


def check_installed(loggers: Iterable[str]) -> None:
    """Refuse a logger whose package is not installed.

    Args:
        loggers: The names in the config's ``logger``.

    Raises:
        ConfigError: Naming the logger and what to install.
    """
    for name in loggers:
        package, install = _PACKAGES.get(name, ("multitask", ""))
        if find_spec(package) is None:
            raise ConfigError(
                f"logger={name} needs the package {package}; install it with pip install {install}."
            )
