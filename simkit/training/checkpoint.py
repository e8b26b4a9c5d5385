"""Checkpoints of a training run: complete, replaced atomically, and read without executing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simkit.errors import DataError, OutputError
from simkit.files import atomic_path, discard_unfinished

CHECKPOINT = "checkpoint.pt"
VERSION = 1


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in ``folder``; a crash while writing leaves the old one."""
    import torch

    with atomic_path(folder / CHECKPOINT) as temporary:
        torch.save({"version": VERSION, **state}, temporary)


def load_checkpoint(folder: Path, identity: str) -> dict[str, Any]:
    """Read the checkpoint in ``folder``.

    Args:
        identity: hash of what is being trained on what; a checkpoint of anything else is refused.

    Raises:
        DataError: if there is none or it cannot be read.
        OutputError: if it belongs to another training.
    """
    import torch

    path = folder / CHECKPOINT
    discard_unfinished(path)
    if not path.is_file():
        raise DataError(f"nothing to resume: there is no {CHECKPOINT} in {folder}; start without --resume")
    try:
        # weights_only: tensors, numbers, strings and containers of them, no code.
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["version"], state["identity"]
    except Exception as error:  # noqa: BLE001 - torch raises many types for a damaged file
        raise DataError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}); start again in a new folder"
        ) from None
    if found != (VERSION, identity):
        raise OutputError(
            f"the checkpoint {path} belongs to another training: the recipe, the data or simkit's version changed; "
            "resume with the same ones or start in a new folder"
        )
    return dict(state)
