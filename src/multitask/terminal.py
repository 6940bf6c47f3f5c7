"""Where tables are printed to."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# A file has no width; a table cut at 80 characters would lose figures.
_FILE_WIDTH = 400


def terminal() -> "Console":
    """Return the terminal, or what its output is led to."""
    from rich.console import Console  # here, for a quick start

    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
