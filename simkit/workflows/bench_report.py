"""`simkit bench` from model file to table, figures and plot; see `simkit.workflows.bench`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from simkit import __version__, plotting
from simkit.errors import ConfigError
from simkit.fast.potential import LARGEST_CHECKED
from simkit.files import write_json
from simkit.workflows.bench import Bench, Cost, System, bench
from simkit.workflows.bench_plot import Curve, cost_against_size
from simkit.workflows.fast_path import COMPILING
from simkit.workflows.structures import check_new_file, open_potential, read_structure
from simkit.workflows.text import table


def bench_model(
    model: str | os.PathLike[str],
    structure: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    sizes: str = "",
    seconds: float = 20.0,
    threads: int | None = None,
    device: str = "auto",
    dtype: str | None = None,
    compile_first: bool = False,
    overwrite: bool = False,
    echo: Callable[[str], None],
) -> Bench:
    """Measure a model file on the structure in a file, tell, and write the figures and a plot.

    Args:
        out: JSON file; the plot has the same name with ``.png``.
        sizes: numbers of copies with commas between; by default they grow until time or memory ends.
        seconds, compile_first: see `bench`.
        threads: of PyTorch and of kernels, while this runs.
        device, dtype: see `open_potential`.

    Raises:
        ConfigError: if an option is unusable, or the model gives no energy.
        OutputError: if a file is there already (without ``overwrite``) or cannot be written.
        SimkitError: if model or structure are unusable.
    """
    copies = _read_sizes(sizes)
    if not seconds > 0:
        raise ConfigError(f"the time for all measurements must be positive, found {seconds:g} s")
    if threads is not None and threads < 1:
        raise ConfigError(f"the number of threads must be 1 or more, found {threads}")
    files = [] if out is None else _check_files(Path(out), overwrite)
    potential = open_potential(model, device, dtype).requires_grad_(False)
    atoms = read_structure(structure)
    if compile_first:
        echo(COMPILING)
    with _threads(threads):
        settings = {
            "model": os.fspath(model),
            "structure": os.fspath(structure),
            "architecture": potential.architecture,
            "dtype": str(potential.dtype).removeprefix("torch."),
            "device": str(potential.device),
            "threads": torch.get_num_threads(),
            "versions": {"simkit": __version__, "torch": torch.__version__},
        }
        result = bench(potential, atoms, copies, seconds, compile_first)
    echo(describe(result, settings))
    if files:
        write_json(files[0], {**settings, **as_plain(result)})
        axes = cost_against_size({path: _curve(result, path) for path in result.paths})
        plotting.save(axes[0], files[1])
        echo(f"figures and plot: {files[0]}, {files[1]}")
    return result


def describe(result: Bench, settings: Mapping[str, Any]) -> str:
    """Return both tables, the forecast, and what ended the growth."""
    first = result.systems[0]
    threads = settings["threads"]
    on = f"{threads} thread{'s' if threads > 1 else ''}" if settings["device"] == "cpu" else settings["device"]
    size = f"{first.atoms} atoms, {first.edges} edges"
    title = f"{settings['architecture']} in {settings['dtype']} on {on}; {settings['structure']}: {size}"
    parts = [f"{title}\nenergy and forces, without neighbor lists and integrator"]
    if result.reason:
        parts.append(f"no fast path: {result.reason}")
    rows = [
        [path, *_speed(cost), f"{cost.nanoseconds_per_day:.3g}", f"{cost.calls}"] for path, cost in first.costs.items()
    ]
    parts.append(table(["path", "ms/call", "µs/atom", "ns/day at 1 fs", "calls"], rows))
    if len(result.systems) > 1:
        header = ["copies", "atoms", *(f"{path} {unit}" for path in result.paths for unit in ("ms", "µs/atom", "MB"))]
        parts.append(table(header, [_row(system, result.paths) for system in result.systems]))
    lines = _memory_lines(result)
    for path, end in result.stopped.items():
        what = "the time (--seconds)" if end == "time" else "the free memory"
        lines.append(f"{path}: no larger system, which would take too much of {what}")
    return "\n\n".join([*parts, *(["\n".join(lines)] if lines else [])])


def _speed(cost: Cost) -> list[str]:
    return [f"{cost.milliseconds:.4g}", f"{cost.microseconds_per_atom:.3g}"]


def _row(system: System, paths: tuple[str, ...]) -> list[str]:
    cells = [str(system.copies), str(system.atoms)]
    for path in paths:
        cost = system.costs.get(path)
        memory = "" if cost is None or cost.bytes is None else f"{cost.bytes / 1e6:.1f}"
        cells += ["", "", ""] if cost is None else [*_speed(cost), memory]
    return cells


def _memory_lines(result: Bench) -> list[str]:
    if all(cost.bytes is None for cost in result.costs(result.paths[0])):
        return ["memory: not measured, because this system does not tell the peak of a process"]
    lines = [
        "MB: growth of the process during the first call at its peak (on a GPU: of what is allocated), and the graph"
    ]
    for path, line in result.forecasts.items():
        text = f"{path}: {line.bytes_per_atom / 1e3:.3g} kB per atom"
        if line.atoms is not None and line.free_bytes is not None:
            text += (
                f"; {line.free_bytes / 1e9:.3g} GB are free, enough for about {float(f'{line.atoms:.2g}'):,.0f} atoms"
            )
        lines.append(text)
    if "fast" in result.forecasts:
        lines.append(
            f"fast: at the first call and now and then the reference path is run in float64 on up to {LARGEST_CHECKED} of the atoms, "
            "which takes memory, too"
        )
    return lines


def as_plain(result: Bench) -> dict[str, Any]:
    """Return what was measured as plain types, with units in the names; None where something is not known."""
    systems = [
        {
            "copies": system.copies,
            "atoms": system.atoms,
            "edges": system.edges,
            **{
                path: {
                    "ms_per_call": cost.milliseconds,
                    "us_per_atom": cost.microseconds_per_atom,
                    "ns_per_day_at_1_fs": cost.nanoseconds_per_day,
                    "calls": cost.calls,
                    "peak_bytes": cost.bytes,
                }
                for path, cost in system.costs.items()
            },
        }
        for system in result.systems
    ]
    forecasts = {path: {**asdict(line), "atoms": line.atoms} for path, line in result.forecasts.items()}
    return {
        "no_fast_path": result.reason or None,
        "systems": systems,
        "memory_forecast": forecasts,
        "stopped_by": dict(result.stopped),
    }


def _curve(result: Bench, path: str) -> Curve:
    costs, line = result.costs(path), result.forecasts.get(path)
    return Curve(
        atoms=[cost.atoms for cost in costs],
        milliseconds=[cost.milliseconds for cost in costs],
        memory=[cost.bytes for cost in costs],
        line=None if line is None else (line.bytes_per_atom, line.fixed_bytes),
    )


def _read_sizes(text: str) -> list[int] | None:
    """Numbers of copies in rising order, None where none are given."""
    if not text.strip():
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"expected numbers of copies with commas between, such as 1,8,64; found {text!r}")
    return sorted({int(word) for word in words})


def _check_files(out: Path, overwrite: bool) -> list[Path]:
    if out.suffix != ".json":
        raise ConfigError(f"expected a name that ends in .json for the figures, found {out.name!r}")
    files = [out, out.with_suffix(".png")]
    for file in files:
        check_new_file(file, overwrite)
    return files


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let PyTorch, which kernels follow, use so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
