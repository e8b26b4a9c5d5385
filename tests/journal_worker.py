"""Run by the tests of observers in a process of its own: kills copies of itself at every call to the system that writes a file."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from simkit.md.observers.journaled_file import JournaledFile, journal_path

FRAMES, ROWS = 4, 300


def block(k: int) -> np.ndarray:
    return np.arange(k * FRAMES * ROWS, (k + 1) * FRAMES * ROWS, dtype=np.float32).reshape(FRAMES, ROWS)


def write(path: Path, blocks: int) -> None:
    """Write a new HDF5 file, or go on with one, with a commit after each block."""
    new = not path.exists()
    disk = JournaledFile(path, "x" if new else "a")
    file = h5py.File(disk, "w" if new else "r+")
    if new:
        file.create_dataset("some/where/rows", (0, ROWS), np.float32, maxshape=(None, ROWS), chunks=(3, 100))
    rows = file["some/where/rows"]
    for k in range(len(rows) // FRAMES, blocks):
        rows.resize((k + 1) * FRAMES, axis=0)
        rows[k * FRAMES :] = block(k)
        file.attrs[f"block {k}"] = k
        file.flush()
        disk.commit()
    file.close()
    disk.commit()
    disk.close()


def check(path: Path) -> int:
    """How many blocks the file shows, which must be whole and right."""
    disk = JournaledFile(path, "r")
    with h5py.File(disk, "r") as file:
        found, noted = file["some/where/rows"][:], len(file.attrs)
    disk.close()
    blocks, rest = divmod(len(found), FRAMES)
    if rest or noted != blocks or not np.array_equal(found, np.concatenate([block(k) for k in range(blocks)])):
        raise SystemExit(f"{path}: {len(found)} rows, {noted} attributes")
    return blocks


def write_and_die(path: Path, call: int) -> None:
    """Write three blocks, and be killed at a call, with half of a write done."""
    left = call

    def counted(function: Callable[..., Any], half: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            nonlocal left
            if left == 0:
                if half is not None:
                    half(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return function(*arguments)

        return called

    pwrite = os.pwrite
    os.pwrite = counted(pwrite, lambda fd, data, at: pwrite(fd, bytes(data)[: len(data) // 2], at))
    os.fsync, os.ftruncate, os.unlink = counted(os.fsync), counted(os.ftruncate), counted(os.unlink)
    write(path, 3)


def killed(work: Callable[..., None], *arguments: Any) -> bool:
    """Whether a copy of this process was killed by its work."""
    pid = os.fork()
    if pid == 0:
        work(*arguments)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise SystemExit("the writer failed")
    return os.WIFSIGNALED(status)


def main(folder: Path) -> list[int]:
    """The blocks that were found after a kill at each call; -1 where the file had not been begun."""
    os.fsync = lambda fd: None  # a process is killed here, not a computer: what was written is there
    found: list[int] = []
    while killed(write_and_die, path := folder / f"{len(found)}.h5", len(found)):
        try:
            found.append(check(path))
        except (OSError, KeyError):  # no commit has been made, see the test
            found.append(-1)
            path.unlink()
        write(path, 5)
        if check(path) != 5 or journal_path(path).exists():
            raise SystemExit(f"{path} could not be gone on with")
    return found


if __name__ == "__main__":
    sys.stdout.write(" ".join(map(str, main(Path(sys.argv[1])))))
