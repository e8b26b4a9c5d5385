"""Stopping long work between two steps when the process is asked to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Set when the process is asked to stop (Ctrl-C, SIGTERM); the loop finishes its step, saves, and raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False

    def _request(self, signum: int, frame: FrameType | None) -> None:
        if self.requested:  # the second time: at once
            raise KeyboardInterrupt
        self.requested = True

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Handle signals while the context is open (in the main thread; elsewhere Python allows no handlers)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in previous.items():
                signal.signal(s, handler)
