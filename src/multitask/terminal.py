"""The terminal that tables are printed to, and how figures look in them."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# A file has no width; a table cut at 80 characters would lose figures.
_FILE_WIDTH = 400


def terminal(file_width: int | None = _FILE_WIDTH) -> "Console":
    """Return the terminal, or what its output is led to; text is printed as it is, brackets and colons too.

    Args:
        file_width: The width of a file, ``None`` for that of the environment.
    """
    from rich.console import Console  # here, for a quick start

    # Names, overrides and paths are the user's: [kinds/scalar] is a list of tasks, and no style of rich's.
    return Console(width=None if sys.stdout.isatty() else file_width, markup=False, emoji=False)


def figure(value: float) -> str:
    """Return a loss or metric as tables show it: four decimals, or three digits where they would leave one or none."""
    return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"
