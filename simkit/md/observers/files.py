"""What observers that write files share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from simkit.errors import ConfigError, OutputError


def check_interval(interval: int) -> int:
    """Return the interval.

    Raises:
        ConfigError: if it is not positive.
    """
    if interval < 1:
        raise ConfigError(f"the interval must be at least 1 step, found {interval}")
    return interval


def new_file(path: Path) -> None:
    """Check that a run may begin a file.

    Raises:
        OutputError: if it exists.
    """
    if path.exists():
        raise OutputError(f"{path} exists already; restart the run that it is of, or choose another folder")


def check_kept(path: Path, found: int, kept: int) -> None:
    """Check that a file holds what the checkpoint says.

    Raises:
        OutputError: if there are fewer frames.
    """
    if found < kept:
        raise OutputError(
            f"{path} holds {found} frames, but the checkpoint {kept}; start the run again in a new folder"
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk says into an error that says what to do.

    Raises:
        OutputError: for any OSError.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. What was there at the last checkpoint is kept: make room, or mend the "
            "disk, and restart the run"
        ) from error
