"""A trunk that no process survives."""

import os
import signal
from typing import Any


def dies(**arguments: Any) -> None:
    """End this process as the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
