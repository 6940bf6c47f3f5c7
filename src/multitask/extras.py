"""Lazy imports of packages that an extra installs."""

from importlib import import_module
from typing import Any


def imported(package: str, extra: str, needed_by: str) -> Any:
    """Import a package that an extra installs and the config key ``needed_by`` needs.

    Raises ``ValueError`` if it is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{needed_by} needs the package {error.name}, which is not installed; install it with "
            f'pip install -e ".[{extra}]".'
        ) from error
