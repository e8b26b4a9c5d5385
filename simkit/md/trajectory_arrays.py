"""A trajectory as arrays, unwrapped and without the drift of its centre of mass: what the functions of the analysis take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from simkit.errors import DataError, GeometryError

if TYPE_CHECKING:
    from ase import Atoms

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TrajectoryArrays:
    """T frames of the same N atoms, evenly spaced in time.

    Attributes:
        numbers: [N] atomic numbers; masses: [N] amu.
        positions: [T, N, 3] angstrom, wrapped or not; cells: [T, 3, 3] angstrom, one vector per row; pbc: [3] bool.
        velocities: [T, N, 3] angstrom/fs, or None.
        frame_time: time between two frames, fs, or None where nothing tells it.
        dropped: frames left out at the end because they were not at their time.
    """

    numbers: NDArray[np.int64]
    masses: Floats
    positions: Floats
    cells: Floats
    pbc: NDArray[np.bool_]
    velocities: Floats | None
    frame_time: float | None
    dropped: int = 0

    @classmethod
    def from_frames(cls, frames: Sequence[Atoms], frame_time: float | None = None) -> TrajectoryArrays:
        """Stack structures of ASE.

        Args:
            frames: at least one; times are taken from ``info["time_fs"]``, velocities from the momenta. A last frame that comes too
                early, as after a run that broke down, is left out.
            frame_time: time between two frames, fs, for frames that do not know their time; else it must agree with theirs.

        Raises:
            DataError: if atoms or boundary conditions change, or the times are not evenly spaced.
            GeometryError: if coordinates or cells are not finite.
        """
        from ase.units import fs

        if not frames:
            raise DataError("expected a trajectory of one frame at least, found none")
        numbers, pbc = frames[0].numbers, frames[0].pbc
        for k, atoms in enumerate(frames):
            if not np.array_equal(atoms.numbers, numbers):
                raise DataError(
                    f"frame {k} has other atoms than frame 0 ({atoms.symbols} and {frames[0].symbols}); a trajectory must keep "
                    "atoms and their order"
                )
            if not np.array_equal(atoms.pbc, pbc):
                raise DataError(
                    f"frame {k} has pbc {atoms.pbc.tolist()}, but frame 0 {pbc.tolist()}; expected the same"
                )
        times = [atoms.info.get("time_fs") for atoms in frames]
        velocities = None
        if all(atoms.has("momenta") for atoms in frames):
            velocities = np.array([atoms.get_velocities() for atoms in frames]) * fs
        return cls.from_arrays(
            numbers.astype(np.int64),
            np.asarray(frames[0].get_masses(), dtype=float),
            np.array([atoms.positions for atoms in frames]),
            np.array([atoms.cell.array for atoms in frames]),
            pbc,
            velocities,
            times,
            frame_time,
        )

    @classmethod
    def from_arrays(
        cls,
        numbers: NDArray[np.int64],
        masses: Floats,
        positions: Floats,
        cells: Floats,
        pbc: NDArray[np.bool_],
        velocities: Floats | None,
        times: Sequence[float | None] | None,
        frame_time: float | None = None,
    ) -> TrajectoryArrays:
        """Check the spacing of the frames and leave out a last one that comes too early; otherwise as in `from_frames`.

        Args:
            times: [T] fs, or None where nothing tells them.

        Raises:
            DataError: if there is no frame, or the times are not evenly spaced.
            GeometryError: if coordinates or cells are not finite.
        """
        if not len(positions):
            raise DataError("expected a trajectory of one frame at least, found none")
        spacing, kept = _spacing(times if times is not None else [None] * len(positions), frame_time)
        arrays = (positions, cells) if velocities is None else (positions, cells, velocities)
        if not all(np.isfinite(array[:kept]).all() for array in arrays):
            raise GeometryError(
                "the trajectory holds positions, velocities or cells that are not finite; cut it before"
            )
        return cls(
            numbers=numbers,
            masses=masses,
            positions=positions[:kept],
            cells=cells[:kept],
            pbc=np.asarray(pbc, dtype=bool),
            velocities=None if velocities is None else velocities[:kept],
            frame_time=spacing,
            dropped=len(positions) - kept,
        )

    def species(self) -> dict[str, NDArray[np.bool_]]:
        """Return which atoms [N] belong to each element, under its symbol, in alphabetical order."""
        from ase.data import chemical_symbols

        symbols = {chemical_symbols[z]: z for z in np.unique(self.numbers).tolist()}
        return {symbol: self.numbers == symbols[symbol] for symbol in sorted(symbols)}

    def formula(self) -> str:
        """Return the atoms in their order, such as "OH2"."""
        from ase.symbols import Symbols

        return str(Symbols(self.numbers))

    def needed_frame_time(self) -> float:
        """Return the time between two frames, fs.

        Raises:
            DataError: if nothing tells it.
        """
        if self.frame_time is None:
            raise DataError(
                "the trajectory does not tell the time between its frames (time_fs in the info of every frame); give it in fs, at "
                "the shell with --frame-time"
            )
        return self.frame_time

    def needed_velocities(self) -> Floats:
        """Return the velocities [T, N, 3], angstrom/fs.

        Raises:
            DataError: if there are none, saying how to store them.
        """
        if self.velocities is None:
            raise DataError(
                "the trajectory has no velocities, which the vibrational spectrum is made from; store them: `simkit md` does, ASE "
                "does in .traj files and, with write(..., columns=['symbols', 'positions', 'momenta']), in .extxyz"
            )
        return self.velocities

    def diffusing_positions(self) -> Floats:
        """Return the positions [T, N, 3] unwrapped and without the motion of the centre of mass; see `unwrap`."""
        unwrapped = unwrap(self.positions, self.cells, self.pbc)
        centre = np.einsum("tnx,n->tx", unwrapped, self.masses / self.masses.sum())
        return unwrapped - (centre - centre[0])[:, None]


def _spacing(times: Sequence[float | None], given: float | None) -> tuple[float | None, int]:
    """The time between frames and how many frames keep to it."""
    if given is not None and not (np.isfinite(given) and given > 0):
        raise DataError(f"the time between two frames must be positive, found {given} fs")
    known = [float(time) for time in times if time is not None]
    if len(known) < len(times) or len(times) < 2:
        return given, len(times)
    steps = np.diff(known)
    spacing = float(steps[0])
    even = np.isclose(steps, spacing, rtol=1e-6, atol=1e-9)
    kept = len(times)
    if len(steps) > 1 and not even[-1] and 0 < steps[-1] < spacing:
        kept, even = kept - 1, even[:-1]
    if not even.all() or spacing <= 0:
        wrong = int(np.argmin(even)) if spacing > 0 else 0
        raise DataError(
            f"the frames are not evenly spaced in time: {spacing:g} fs at first, but {steps[wrong]:g} fs after frame {wrong}; choose "
            "an even part of the trajectory, such as FILE@0:100"
        )
    spacing = (known[kept - 1] - known[0]) / (kept - 1)
    if given is not None and not np.isclose(given, spacing, rtol=1e-6):
        raise DataError(f"the frames are {spacing:g} fs apart, but {given:g} fs was given; leave it out")
    return spacing, kept


def unwrap(positions: ArrayLike, cells: ArrayLike, pbc: ArrayLike) -> Floats:
    """Return continuous paths [T, N, 3] in angstrom: steps over the boundary of the cell are taken back.

    Every step is the shortest one among the images in the cell after the step, added up from the first frame. With a cell that changes,
    this keeps the diffusion right, unlike unwrapping in scaled coordinates, which turns every change of the cell into a motion that
    grows with the number of cells crossed (von Bulow, Bullerjahn & Hummer, J. Chem. Phys. 153, 021101 (2020)).
    Right as long as no atom moves by half a cell between two frames.

    Args:
        positions: [T, N, 3] angstrom, wrapped or not; cells: [T, 3, 3] or [3, 3]; pbc: [3] bool.

    Raises:
        GeometryError: for wrong shapes, or cells without a volume along periodic directions.
    """
    path, periodic = np.asarray(positions, dtype=float), np.asarray(pbc, dtype=bool)
    if path.ndim != 3 or path.shape[2] != 3 or len(path) == 0 or periodic.shape != (3,):
        raise GeometryError(f"expected positions [T, N, 3] and pbc [3], found {path.shape} and {periodic.shape}")
    if not periodic.any():
        return path.copy()
    lattice = np.asarray(cells, dtype=float)
    if lattice.shape not in {(3, 3), (len(path), 3, 3)}:
        raise GeometryError(f"expected cells [3, 3] or [{len(path)}, 3, 3], found {lattice.shape}")
    lattice = np.where(periodic[:, None], np.broadcast_to(lattice, (len(path), 3, 3)), 0.0)
    lengths = np.linalg.norm(lattice, axis=2)[:, periodic]
    rank = np.linalg.matrix_rank(lattice, tol=1e-6 * lengths.max())
    if lengths.min() <= 0 or (rank < periodic.sum()).any():
        raise GeometryError("a cell has no volume: its periodic vectors are zero or linearly dependent")
    inverse = np.linalg.pinv(lattice)
    # Into the cell of each frame first: the image of an atom far away would move with every change of the cell.
    path = path - np.floor(path @ inverse) @ lattice
    steps = np.diff(path, axis=0)
    steps -= np.rint(steps @ inverse[1:]) @ lattice[1:]
    start = np.asarray(positions, dtype=float)[:1]
    return np.concatenate([start, start + np.cumsum(steps, axis=0)])
