"""`JournaledFile`: a binary file whose contents on the disk go from one whole state to the next, whenever the process is killed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from pathlib import Path
from typing import Any

PAGE = 4096
MAGIC = b"simkitJ1"
HEADER = struct.Struct("<8sqq")  # magic, size of the file, number of pages


def journal_path(path: Path) -> Path:
    """Return where the journal of a file lies."""
    return path.with_name(path.name + ".journal")


class JournaledFile:
    """A file for h5py's ``fileobj`` driver. Between two commits, the disk holds what was there at the first of them.

    HDF5 changes its tables in place and in any order, so that a process killed while it writes leaves a file that cannot be opened. Here,
    what is written behind the end of the last commit goes straight to the disk, where nothing refers to it yet; all else waits in memory
    as pages. A commit makes the new data safe, writes the pages into a journal with a checksum, then into the file, and removes the
    journal: a redo log. Opening a file with a complete journal beside it uses the journal; a broken one is of a commit that never was.
    """

    def __init__(self, path: Path, mode: str) -> None:
        """Open a file: new ("x"), to go on ("a"), or to read only ("r"), which leaves the disk as it is.

        Raises:
            OSError: as `open` does.
        """
        self.path, self.readonly = path, mode == "r"
        flags = {"x": os.O_RDWR | os.O_CREAT | os.O_EXCL, "a": os.O_RDWR, "r": os.O_RDONLY}[mode]
        self._pages: dict[int, bytearray] = {}
        self._position = 0
        self.error: OSError | None = None
        self._fd = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)
        self._committed = self._size = os.fstat(self._fd).st_size
        journal = _read_journal(journal_path(path)) if mode != "x" else None
        if journal is not None:
            self._size, self._pages = journal
            if not self.readonly:
                self._apply()
        elif not self.readonly:
            journal_path(path).unlink(missing_ok=True)

    # What h5py calls. An exception would get lost in HDF5: the first one is kept, and nothing reaches the disk after it.

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def read(self, count: int) -> bytes:
        """Return so many bytes from the position on."""
        data = bytearray(count)
        self.readinto(data)
        return bytes(data)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the position on; zeros where nothing was written. Returns its length."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            page, start = divmod(self._position, PAGE)
            held = self._pages.get(page)
            if held is not None:
                count = min(PAGE - start, len(view) - done)
                view[done : done + count] = held[start : start + count]
            else:
                count = self._run(page, start, len(view) - done)
                data = os.pread(self._fd, count, self._position)
                view[done : done + len(data)] = data
                view[done + len(data) : done + count] = bytes(count - len(data))
            done += count
            self._position += count
        return done

    def write(self, data: Any) -> int:
        """Write at the position."""
        view = memoryview(data).cast("B")
        end = self._position + len(view)
        done = 0
        while done < len(view) and self.error is None:
            page, start = divmod(self._position, PAGE)
            if page * PAGE < self._committed:
                count = min(PAGE - start, len(view) - done)
                self._page(page)[start : start + count] = view[done : done + count]
            else:
                count = len(view) - done
                self._direct(view[done:], self._position)
            done += count
            self._position += count
        self._position = end
        self._size = max(self._size, end)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size; on the disk, at the next commit."""
        self._size = self._position if size is None else size
        return self._size

    def flush(self) -> None:
        """Nothing: only a commit changes the disk for good."""

    # What the writer calls.

    def commit(self) -> None:
        """Make the present contents those on the disk.

        Raises:
            OSError: of this or of an earlier write. The disk keeps the contents of the last commit.
        """
        if self.error is not None:
            raise self.error
        if not self._pages and self._size == self._committed:
            return
        try:
            if self._size > os.fstat(self._fd).st_size:
                os.ftruncate(self._fd, self._size)
            os.fsync(self._fd)
            _write_journal(journal_path(self.path), self._size, self._pages)
            self._apply()
        except OSError as error:
            self.error = error
            raise

    def discard(self) -> None:
        """Let nothing more reach the disk."""
        self.error = self.error or OSError("the changes were discarded")

    def close(self) -> None:
        """Close, without a commit."""
        os.close(self._fd)

    def _apply(self) -> None:
        """Bring the pages into the file; they are safe in the journal."""
        for page in sorted(self._pages):
            _write_all(self._fd, self._pages[page], page * PAGE)
        os.ftruncate(self._fd, self._size)
        os.fsync(self._fd)
        journal_path(self.path).unlink(missing_ok=True)
        self._pages.clear()
        self._committed = self._size

    def _page(self, page: int) -> bytearray:
        if page not in self._pages:
            self._pages[page] = bytearray(os.pread(self._fd, PAGE, page * PAGE).ljust(PAGE, b"\0"))
        return self._pages[page]

    def _run(self, page: int, start: int, wanted: int) -> int:
        """How many bytes from here on are not held in memory."""
        if not self._pages or page > max(self._pages):
            return wanted
        last = page + 1
        while (last * PAGE) - (page * PAGE + start) < wanted and last not in self._pages:
            last += 1
        return min(wanted, last * PAGE - (page * PAGE + start))

    def _direct(self, view: memoryview, offset: int) -> None:
        try:
            _write_all(self._fd, view, offset)
        except OSError as error:
            self.error = error


def _write_all(fd: int, data: Any, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def _write_journal(path: Path, size: int, pages: dict[int, bytearray]) -> None:
    numbers = sorted(pages)
    content = HEADER.pack(MAGIC, size, len(numbers)) + struct.pack(f"<{len(numbers)}q", *numbers)
    content += b"".join(pages[number] for number in numbers)
    try:
        with path.open("wb", buffering=0) as stream:
            _write_all(stream.fileno(), content + hashlib.sha256(content).digest(), 0)
            os.fsync(stream.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise


def _read_journal(path: Path) -> tuple[int, dict[int, bytearray]] | None:
    """Size and pages of a journal; None where there is none, or one that was not finished."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    body, checksum = content[:-32], content[-32:]
    if len(body) < HEADER.size or hashlib.sha256(body).digest() != checksum:
        return None
    magic, size, count = HEADER.unpack_from(body)
    if magic != MAGIC:
        return None
    numbers = struct.unpack_from(f"<{count}q", body, HEADER.size)
    start = HEADER.size + 8 * count
    pages = {number: bytearray(body[start + k * PAGE :][:PAGE]) for k, number in enumerate(numbers)}
    return size, pages
