"""Downloading the files of public data sets, checked and written atomically."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from simkit.errors import DataError
from simkit.files import atomic_path, ensure_output_dir
from simkit.progress import track

_CHUNK = 1 << 20
_TIMEOUT = 60.0


def fetch(url: str, target: Path, digest: str, algorithm: str = "md5") -> Path:
    """Download ``url`` to ``target`` unless it is there already, and check it.

    Args:
        digest: the published checksum of the file.
        algorithm: its kind, as `hashlib` names it. It guards against damage, so that MD5 does.

    Raises:
        DataError: if the file cannot be downloaded or does not have the checksum; the message says where to put it by
            hand.
        OutputError: if it cannot be written.
    """
    if target.is_file():
        with target.open("rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
        if found != digest:
            raise DataError(f"{target} is damaged ({algorithm} {found}, expected {digest}); delete it and try again")
        return target
    ensure_output_dir(target.parent)
    by_hand = f"download it by hand and save it as {target}"
    checksum = hashlib.new(algorithm, usedforsecurity=False)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "simkit"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, atomic_path(target) as temporary:
            size = int(response.headers.get("Content-Length") or 0)
            with temporary.open("wb") as stream:
                for chunk in track(_chunks(response), f"download {target.name}", -(-size // _CHUNK) or None):
                    checksum.update(chunk)
                    stream.write(chunk)
            if checksum.hexdigest() != digest:
                raise DataError(
                    f"{url} came with the {algorithm} {checksum.hexdigest()}, expected {digest}: the download was cut "
                    f"off or replaced; try again, or {by_hand}"
                )
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise DataError(f"cannot download {url} ({reason}); {by_hand}") from error
    return target


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK):
        yield chunk
