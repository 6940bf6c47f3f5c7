"""A user's callback that sends its own process signals at a chosen moment."""

import os
import signal
from collections.abc import Sequence
from typing import Any

from lightning import Callback


class StopAt(Callback):
    """Sends the signals, in turn, when ``hook`` is called for the ``count``-th time."""

    def __init__(self, hook: str | None, count: int, signals: Sequence[str]) -> None:
        self._calls = 0
        if hook is not None:

            def called(*arguments: Any, **keywords: Any) -> None:
                self._calls += 1
                if self._calls == count:
                    for name in signals:
                        os.kill(os.getpid(), getattr(signal, name))

            setattr(self, hook, called)
