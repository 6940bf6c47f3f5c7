"""The console for tables, and the format of numbers in them."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Files have no width; rich would truncate tables at 80 characters.
_FILE_WIDTH = 400


def terminal(file_width: int | None = _FILE_WIDTH) -> "Console":
    """Return a console on stdout that does not interpret markup.

    Args:
        file_width: Width if stdout is not a terminal; ``None`` to use the environment's.
    """
    from rich.console import Console  # here, to keep startup fast

    # Text contains the user's names and overrides: [kinds/scalar] is a list of tasks, not a style of rich.
    return Console(width=None if sys.stdout.isatty() else file_width, markup=False, emoji=False)


def table(title: str, texts: Iterable[str], numbers: Iterable[str]) -> "Table":
    """Return a table with columns of texts, which wrap instead of being truncated, and of numbers."""
    from rich.table import Table  # here, to keep startup fast

    made = Table(title=title, title_justify="left", caption_justify="left")
    for name in texts:
        made.add_column(name, overflow="fold")
    for name in numbers:
        made.add_column(name, justify="right", no_wrap=True)
    return made


def decimal(value: float) -> str:
    """Format a loss or metric with four decimals, or with three significant digits below 0.001."""
    return f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"
