"""Progress bars: shown on a terminal, silent elsewhere."""

import sys
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Iterate with a progress bar on standard error; without one when standard error is not a terminal."""
    if not sys.stderr.isatty():
        return iterable
    from rich.console import Console
    from rich.progress import track as rich_track

    return rich_track(iterable, description=description, total=total, console=Console(stderr=True), transient=True)
