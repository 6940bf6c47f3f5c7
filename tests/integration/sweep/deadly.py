"""A trunk that kills its process."""

import os
import signal
from typing import Any


def dies(**arguments: Any) -> None:
    """Kill this process, as the system does when it runs out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
