"""Running one function over many independent items in several processes."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from simkit.errors import ConfigError

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], jobs: int) -> Iterator[Result]:
    """Yield the results of ``function`` as they are ready, in any order; ``jobs`` processes with one thread each, or
    this one if 1.

    Raises:
        ConfigError: if ``jobs`` is below 1.
    """
    if jobs < 1:
        raise ConfigError(f"the number of jobs is {jobs}, expected 1 or more")
    if jobs == 1:
        yield from map(function, items)
        return
    import joblib

    # One thread per process: several processes that each start one thread per core slow each other down.
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
        parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    yield from parallel(joblib.delayed(function)(item) for item in items)
