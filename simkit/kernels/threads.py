"""How many threads a kernel compiled by Numba may use: as many as PyTorch, so that one setting governs both."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from numba import config as numba_config
from numba import set_num_threads

_PROCESS = os.getpid()


@functools.cache
def _start_threads() -> None:
    """Start Numba's threads and give PyTorch's number of threads back.

    Numba's OpenMP layer may run on the very runtime that PyTorch uses, and sets that runtime's number of threads to its own when it
    starts: a process told to use one thread would use all cores from the first kernel on.
    """
    threads = torch.get_num_threads()
    set_num_threads(1)
    torch.set_num_threads(threads)


def task_count(most: int) -> int:
    """Return into how many tasks a kernel should cut its work, at least 1 and at most ``most``; Numba is set to as many threads.

    It is 1 in a forked process: OpenMP ends one that uses more threads than its own.
    """
    if os.getpid() != _PROCESS:
        return 1
    _start_threads()
    tasks = max(1, min(torch.get_num_threads(), numba_config.NUMBA_NUM_THREADS, most))
    if tasks > 1:
        set_num_threads(tasks)
    return tasks


def run_tasks(run: Callable[[int], None], tasks: int) -> None:
    """Call ``run(0)`` to ``run(tasks - 1)``, each in a thread of its own, for compiled code that lets go of Python's lock.

    Numba's own parallel loops take no nested tuples, and are compiled twice where one task should need no threads.
    """
    if tasks == 1:
        run(0)
        return
    with ThreadPoolExecutor(tasks) as pool:
        list(pool.map(run, range(tasks)))
