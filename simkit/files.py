"""Writing files so that they are never half written, model files, hashing, and where data lies."""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, TypeVar

from simkit.errors import ModelFileError, OutputError

if TYPE_CHECKING:
    from torch import Tensor, nn

ModelT = TypeVar("ModelT", bound="nn.Module")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (same suffix) that replaces it on success and vanishes on failure.

    Raises:
        OutputError: if the folder does not exist or cannot be written.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        try:
            yield temporary
        except OSError as error:
            # A full disk is about this file; a missing input, for example, is not and keeps its own message.
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}:
                raise OutputError(f"cannot write {target}: {error.strerror}") from error
            raise
        try:
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)  # mkstemp makes files private; give the mode that open() would
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except OSError as error:
            raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def discard_unfinished(path: str | os.PathLike[str]) -> None:
    """Delete what processes left that were killed while they replaced ``path`` by `atomic_path`; none may be doing so now."""
    target = Path(path)
    for left in target.parent.glob(f".{target.stem}-*{target.suffix}"):
        left.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write ``content`` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2, sort_keys=False) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_model(path: str | os.PathLike[str], tensors: Mapping[str, "Tensor"], header: Mapping[str, Any]) -> None:
    """Write tensors and a header as one safetensors file, atomically.

    Raises:
        OutputError: if the file cannot be written.
    """
    from safetensors.torch import save

    # No two entries may share memory in the file, and no entry may be a view.
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    content = save(own, metadata={"simkit": json.dumps(header)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)  # an OSError, which safetensors' own writer would hide


def rebuild_model(
    path: str | os.PathLike[str], header: Mapping[str, Any], build: Callable[[Mapping[str, Any]], ModelT], device: str
) -> ModelT:
    """Build a model from the header of its file, load its weights, and return it on a device in evaluation mode.

    Args:
        header: from `read_model_header`.
        build: makes the model, with any weights; a KeyError of it names what the header lacks.

    Raises:
        ModelFileError: if the header does not make a model, or the weights do not fit it.
    """
    from safetensors.torch import load_file

    try:
        model = build(header)
        model.load_state_dict(load_file(path))
    except KeyError as error:
        raise ModelFileError(f"{path} does not hold a consistent model: its header lacks {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        reason = shorten(str(error), 300)  # on one line: torch lists the weights that do not fit line by line
        raise ModelFileError(f"{path} does not hold a consistent model: {reason}") from error
    return model.to(device).eval()


def read_model_header(path: str | os.PathLike[str], model_format: str, version: int, kind: str) -> dict[str, Any]:
    """Return the header of a file by `write_model`, without the weights.

    Args:
        model_format: the header's ``format``; ``version`` is the newest that is known.
        kind: what the file should hold ("potential"), for the messages.

    Raises:
        ModelFileError: if the file is missing, truncated, pickled, of another format or of a newer version.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"no model file at {path}; expected a .safetensors file written by simkit")
    with path.open("rb") as stream:
        start = stream.read(9)
    # A safetensors file starts with the length of its header, whose bytes may be anything, and then the brace of the header.
    if (start[:2] == b"PK" or start[:1] == b"\x80") and start[8:] != b"{":
        raise ModelFileError(
            f"{path} is a pickled PyTorch file. simkit does not read pickles, because opening one can run any program hidden "
            "in it; convert the model with the tool that wrote it, or train it again"
        )
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is not a complete safetensors file ({error}); it may be truncated: copy or download it again"
        ) from None
    try:
        header = json.loads(metadata["simkit"])
        found = (header["format"], int(header["version"]))
    except (KeyError, ValueError, TypeError):
        raise ModelFileError(f"{path} is a safetensors file, but not one of a simkit {kind}") from None
    if found[0] != model_format or found[1] > version:
        raise ModelFileError(
            f"{path} has format {found[0]} version {found[1]}, but this simkit reads {model_format} up to version {version}; "
            "install a newer simkit"
        )
    return header


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def ensure_output_dir(path: str | os.PathLike[str]) -> Path:
    """Make the folder ``path`` (and its parents) and check that files can be written in it.

    Raises:
        OutputError: if it cannot be made or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write to the output folder {folder}: {error.strerror or error}; choose another one"
        ) from error
    return folder


def data_dir() -> Path | None:
    """Return the folder of reference data named by the environment variable ``SIMKIT_DATA_DIR``, or None."""
    value = os.environ.get("SIMKIT_DATA_DIR")
    return Path(value).expanduser() if value else None


def cache_dir() -> Path:
    """Return the folder for downloads and processed data: ``SIMKIT_CACHE_DIR``, else the user's cache folder (not made here)."""
    value = os.environ.get("SIMKIT_CACHE_DIR")
    if value:
        return Path(value).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "simkit"
