"""The flat store: batches against ASE and against single structures, files, checks of input, warnings on units."""

import re
import time
from pathlib import Path

import ase.build
import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st

from simkit.datasets import load
from simkit.datasets.checks import unit_warnings
from simkit.datasets.npz_file import read_npz
from simkit.datasets.store import Store, concatenate
from simkit.errors import ConfigError, DataError, LabelError
from simkit.graph import LABELS, AtomGraph
from simkit.units import BOHR, HARTREE, KCAL_PER_MOL

CUTOFF = 3.0


def make_store(frames: list[Atoms], seed: int = 0) -> Store:
    """A store of these frames with random labels of every kind."""
    rng = np.random.default_rng(seed)
    counts = [len(frame) for frame in frames]
    labels = {
        name: rng.normal(size=((len(frames) if LABELS[name].per == "graph" else sum(counts)), *LABELS[name].shape))
        for name in ("energy", "forces", "stress", "dipole", "charges")
    }
    return Store(
        np.concatenate([frame.numbers for frame in frames]),
        np.concatenate([frame.positions for frame in frames]),
        np.concatenate([[0], np.cumsum(counts)]),
        labels,
        cell=np.stack([frame.cell.array for frame in frames]),
        pbc=np.stack([frame.pbc for frame in frames]),
        groups=np.array([str(frame.symbols) for frame in frames]),
        columns={"number": np.arange(len(frames))},
        info={"name": "made up", "level_of_theory": "none", "references": {"energy": {1: -13.6, 6: -1029.0}}},
    )


MOLECULES = [ase.build.molecule(name) for name in ("CH3CH2OH", "H2O", "CH4", "H", "C6H6", "NH3")]
MIXED = [
    *MOLECULES,
    ase.build.bulk("Cu", cubic=True),
    ase.build.bulk("Si"),
    ase.build.fcc111("Al", (1, 2, 2), vacuum=4.0),
]
for _frame in MIXED[-3:]:
    _frame.rattle(0.05, seed=1)


@pytest.fixture(scope="module")
def molecules() -> Store:
    return make_store(MOLECULES)


@pytest.fixture(scope="module")
def mixed() -> Store:
    return make_store(MIXED)


def edges_of(graph: AtomGraph) -> set[tuple[float, ...]]:
    shift = graph.edge_shift if "edge_shift" in graph else torch.zeros(graph.edge_index.shape[1], 3)
    return set(map(tuple, torch.cat([graph.edge_index.T.double(), shift.double()], dim=1).tolist()))


def assert_same_graph(a: AtomGraph, b: AtomGraph) -> None:
    assert a.edge_index.shape == b.edge_index.shape
    assert edges_of(a) == edges_of(b)
    assert bool((a.edge_index[1].diff() >= 0).all()), "edges are sorted by receiver"
    for name in ("z", "pos", "cell", "pbc", "batch", "ptr", "energy", "forces", "stress", "dipole", "charges"):
        assert (name in a) == (name in b)
        if name in a:
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["stored", "on_the_fly"])
def test_batch_of_molecules_equals_ase(molecules: Store, mode: str) -> None:
    rows = [4, 0, 0, 3]
    graph = molecules.with_neighbors(CUTOFF, mode).batch(rows)
    expected = AtomGraph.from_ase([MOLECULES[row] for row in rows], CUTOFF)
    assert edges_of(graph) == edges_of(expected)
    for name in ("z", "pos", "cell", "pbc", "batch", "ptr"):
        torch.testing.assert_close(graph[name], expected[name], rtol=0, atol=0)
    assert "edge_shift" not in graph
    torch.testing.assert_close(graph.energy, molecules.labels["energy"][rows])


def test_batch_of_periodic_structures_equals_ase(mixed: Store) -> None:
    rows = torch.tensor([8, 0, 6, 7])
    graph = mixed.with_neighbors(CUTOFF).batch(rows)
    expected = AtomGraph.from_ase([MIXED[row] for row in rows.tolist()], CUTOFF)
    assert edges_of(graph) == edges_of(expected)
    lengths = graph.edge_vectors().norm(dim=1)
    torch.testing.assert_close(lengths.sort().values, expected.edge_vectors().norm(dim=1).sort().values)
    assert float(lengths.max()) < CUTOFF


@given(
    rows=st.lists(st.integers(0, len(MIXED) - 1), min_size=1, max_size=7),
    periodic=st.booleans(),
    mode=st.sampled_from(["auto", "stored"]),
)
def test_batch_is_the_singles_end_to_end(rows: list[int], periodic: bool, mode: str) -> None:
    frames = MIXED if periodic else MOLECULES
    rows = [row % len(frames) for row in rows]
    store = make_store(frames).with_neighbors(CUTOFF, mode)
    graph, singles = store.batch(rows), [store.batch([row]) for row in rows]
    starts = np.concatenate([[0], np.cumsum([len(single.z) for single in singles])])
    assert graph.ptr.tolist() == starts.tolist()
    expected = AtomGraph(
        edge_index=torch.cat(
            [single.edge_index + start for single, start in zip(singles, starts, strict=False)], dim=1
        ),
        edge_shift=torch.cat([single.edge_shift for single in singles]) if periodic else None,
        batch=torch.cat([torch.full_like(single.z, k) for k, single in enumerate(singles)]),
        ptr=torch.from_numpy(starts),
        **{name: torch.cat([single[name] for single in singles]) for name in ("z", "pos", "cell", "pbc")},
        **{name: torch.cat([single[name] for single in singles]) for name in store.labels},
    )
    assert_same_graph(graph, expected)


@given(rows=st.lists(st.integers(0, len(MIXED) - 1), min_size=1, max_size=9))
def test_select_then_batch_equals_batch(rows: list[int]) -> None:
    store = make_store(MIXED).with_neighbors(CUTOFF)
    part = store.select(rows)
    assert_same_graph(part.batch(range(len(rows))), store.batch(rows))
    assert part.groups is not None
    assert part.groups.tolist() == [str(MIXED[row].symbols) for row in rows]
    assert part.columns["number"].tolist() == rows
    assert part.with_neighbors(CUTOFF).hash() == part.hash()


def test_stored_and_on_the_fly_agree_on_many_molecules(rng: np.random.Generator) -> None:
    frames = [MOLECULES[k].copy() for k in rng.integers(0, len(MOLECULES), 3000)]
    store = make_store(frames)
    rows = rng.permutation(3000)[:500]
    assert_same_graph(
        store.with_neighbors(CUTOFF, "stored").batch(rows), store.with_neighbors(CUTOFF, "on_the_fly").batch(rows)
    )


def test_dtypes(molecules: Store) -> None:
    single = Store(molecules.z, molecules.pos.float(), molecules.ptr, {"energy": molecules.labels["energy"].float()})
    assert single.pos.dtype == torch.float32
    assert single.labels["energy"].dtype == torch.float64
    store = molecules.with_neighbors(CUTOFF)
    graph = store.batch([0, 1], dtype=torch.float32)
    assert graph.pos.dtype == graph.forces.dtype == torch.float32
    assert graph.energy.dtype == torch.float64
    assert store.batch([0]).pos.dtype == torch.float64
    assert single.with_neighbors(CUTOFF).batch([0]).pos.dtype == torch.float64


def test_what_it_says_about_itself(mixed: Store) -> None:
    assert len(mixed) == len(MIXED)
    assert mixed.elements == sorted({number for frame in MIXED for number in frame.numbers.tolist()})
    assert mixed.n_atoms.tolist() == [len(frame) for frame in MIXED]
    assert mixed.formulas().tolist() == [frame.get_chemical_formula("hill") for frame in MIXED]
    counts = [[int((frame.numbers == number).sum()) for number in mixed.elements] for frame in MIXED]
    assert mixed.composition().tolist() == counts
    assert mixed.has("forces")
    assert not mixed.has("mu")
    text = mixed.describe()
    for part in ("9 structures", "energy", "9 structures", "eV/angstrom^3", "H -13.6", "3 of them periodic"):
        assert part in text


def test_to_atoms(mixed: Store) -> None:
    for row, atoms in zip([7, 0], mixed.to_atoms([7, 0]), strict=True):
        assert atoms.symbols.get_chemical_formula() == MIXED[row].symbols.get_chemical_formula()
        np.testing.assert_array_equal(atoms.positions, MIXED[row].positions)
        np.testing.assert_array_equal(atoms.cell.array, MIXED[row].cell.array)
        assert atoms.get_potential_energy() == float(mixed.labels["energy"][row])
    assert len(mixed.to_atoms()) == len(MIXED)


def test_hash_depends_on_the_content_only(mixed: Store) -> None:
    assert make_store(MIXED).hash() == mixed.hash()
    assert make_store(MIXED, seed=1).hash() != mixed.hash()
    assert mixed.select(np.arange(len(mixed))[::-1].copy()).hash() != mixed.hash()
    assert mixed.with_neighbors(CUTOFF).hash() == mixed.hash()


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("mode", [None, "auto", "stored"])
def test_save_and_load(mixed: Store, molecules: Store, tmp_path: Path, compress: bool, mode: str | None) -> None:
    for store in (mixed, molecules):
        store = store if mode is None else store.with_neighbors(CUTOFF, mode)
        store.save(tmp_path / "store.npz", compress)
        again = Store.load(tmp_path / "store.npz")
        assert again.hash() == store.hash()
        assert again.info == store.info
        assert (again.neighbors is None) == (mode is None)
        if mode is not None:
            assert_same_graph(again.batch([2, 1]), store.batch([2, 1]))
    assert [path.name for path in tmp_path.iterdir()] == ["store.npz"]


def test_damaged_files(mixed: Store, tmp_path: Path) -> None:
    path = tmp_path / "store.npz"
    mixed.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="truncated"):
        Store.load(path)
    path.write_bytes(content)
    arrays = read_npz(path)
    arrays["label:energy"] = arrays["label:energy"] + 1e-9
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.raises(DataError, match="altered"):
        Store.load(path)
    arrays = {"z": np.array([object()])}
    np.savez(path, **arrays)
    with pytest.raises(DataError, match="with objects in it"):
        Store.load(path)
    np.savez(path, z=np.ones(3))
    with pytest.raises(DataError, match="no store written by simkit"):
        Store.load(path)
    with pytest.raises(DataError, match="there is no file"):
        Store.load(tmp_path / "absent.npz")
    with pytest.raises(DataError, match=r"ends in \.npz"):
        mixed.save(tmp_path / "store.dat")


def test_concatenate(molecules: Store) -> None:
    both = concatenate([molecules.select([0, 1]), molecules.select([2, 3, 4, 5])])
    assert both.hash() == molecules.hash()
    with pytest.raises(DataError, match="no neighbors yet"):
        both.batch([0])
    periodic = make_store(MIXED[-2:])
    mixed = concatenate([molecules, periodic], info=molecules.info)
    assert mixed.pbc is not None
    assert mixed.pbc.any(1).tolist() == [False] * 6 + [True] * 2


def test_concatenate_refuses_what_does_not_belong_together(molecules: Store) -> None:
    bare = Store(molecules.z, molecules.pos, molecules.ptr, {}, info=molecules.info)
    with pytest.raises(LabelError, match="load both with the same labels"):
        concatenate([molecules, bare])
    other = molecules.select([0])
    other.info["level_of_theory"] = "another"
    with pytest.raises(DataError, match="level_of_theory differs"):
        concatenate([molecules, other])
    with pytest.raises(DataError, match="at least one"):
        concatenate([])


def arguments(**changes: object) -> dict[str, object]:
    given = {"z": [8, 1, 1, 6], "pos": np.eye(4, 3), "ptr": [0, 3, 4], "labels": {"energy": [1.0, 2.0]}}
    return given | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"labels": {"enrgy": [1.0, 2.0]}}, LabelError, "unknown label 'enrgy'"),
        ({"labels": {"energy": [1.0, np.nan]}}, LabelError, "energy of frame 1 of data set is not finite"),
        ({"labels": {"forces": np.full((4, 3), np.inf)}}, LabelError, "forces of frame 0"),
        (
            {"labels": {"forces": np.vstack([np.zeros((3, 3)), np.full((1, 3), np.nan)])}},
            LabelError,
            r"forces of frame 1 .*\(1 of 4 rows",
        ),
        ({"labels": {"forces": np.zeros((2, 3))}}, LabelError, r"expected shape \[4, 3\], found \[2, 3\]"),
        ({"pos": np.full((4, 3), np.nan)}, DataError, "positions of frame 0"),
        ({"z": [8, 1, 1, 0]}, DataError, "within 1 and 118, found 0"),
        ({"z": [8, 1, 1]}, DataError, "expected 4 integers"),
        ({"ptr": [0, 3, 3, 4]}, DataError, "frame 1 has no atoms"),
        ({"ptr": [0]}, DataError, "is empty"),
        ({"cell": np.zeros((2, 3))}, DataError, "cell of data set"),
        ({"pbc": [[True] * 3, [False] * 3]}, DataError, "frame 0 of data set is periodic in a direction without"),
        ({"groups": np.array(["a"])}, DataError, r"groups of data set: expected one value per frame \(2\)"),
    ],
)
def test_bad_input(changes: dict[str, object], error: type[Exception], message: str) -> None:
    given = arguments(**changes)
    with pytest.raises(error, match=message):
        Store(
            *(np.asarray(given.pop(name)) for name in ("z", "pos", "ptr")),
            {name: np.asarray(value) for name, value in given.pop("labels").items()},  # type: ignore[attr-defined]
            **{name: np.asarray(value) for name, value in given.items()},  # type: ignore[arg-type]
        )


def test_bad_requests(molecules: Store, mixed: Store) -> None:
    with pytest.raises(DataError, match=r"with_neighbors\(cutoff\)"):
        molecules.batch([0])
    store = molecules.with_neighbors(CUTOFF)
    for rows, message in (
        ([6], "0 to 5"),
        ([-1], "-1 to -1"),
        ([], "non-empty"),
        ([True, False], "found"),
        ([0.5], "float"),
    ):
        with pytest.raises(DataError, match=message):
            store.batch(rows)
    with pytest.raises(ConfigError, match="positive cutoff"):
        molecules.with_neighbors(-1.0)
    with pytest.raises(ConfigError, match="stored"):
        mixed.with_neighbors(CUTOFF, "on_the_fly")
    with pytest.raises(ConfigError, match="expected a mode"):
        mixed.with_neighbors(CUTOFF, "fast")


# ------------------------------------------------------------------------------------------------ warnings on units


def physical_store(energy_factor: float = 1.0, length_factor: float = 1.0, force_factor: float = 1.0) -> Store:
    """Molecules with plausible total energies and forces, in units that are off by a factor."""
    rng = np.random.default_rng(0)
    atoms = {1: -13.6, 6: -1029.5, 7: -1485.0, 8: -2042.0}
    frames = [frame.copy() for frame in MOLECULES if len(frame) > 1] * 4
    energy = [sum(atoms[number] for number in frame.numbers.tolist()) - 4.0 * len(frame) for frame in frames]
    for frame in frames:
        frame.rattle(0.05, rng=rng)
    counts = [len(frame) for frame in frames]
    return Store(
        np.concatenate([frame.numbers for frame in frames]),
        np.concatenate([frame.positions for frame in frames]) * length_factor,
        np.concatenate([[0], np.cumsum(counts)]),
        {"energy": np.array(energy) * energy_factor, "forces": rng.normal(size=(sum(counts), 3)) * force_factor},
    )


def test_no_warning_on_right_units() -> None:
    assert unit_warnings(physical_store()) == []


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"energy_factor": 1 / HARTREE}, "look like hartree"),
        ({"energy_factor": 1 / KCAL_PER_MOL}, "kcal/mol"),
        ({"energy_factor": HARTREE}, "converted from hartree"),
        ({"energy_factor": 1e6}, "another unit|kcal/mol"),
        ({"length_factor": 1 / BOHR}, "look like bohr"),
        ({"length_factor": 0.1}, "look like nm"),
        ({"length_factor": BOHR}, "converted from bohr"),
        ({"length_factor": 10.0}, "within 6 angstrom"),
        ({"force_factor": 50.0}, "kcal/mol/angstrom"),
        ({"force_factor": 1e-5}, "hartree/bohr"),
    ],
)
def test_warnings_on_wrong_units(factors: dict[str, float], message: str) -> None:
    store = physical_store(**factors)
    warnings = unit_warnings(store)
    assert len(warnings) == 1
    assert re.search(message, warnings[0])
    assert f"WARNING: {warnings[0]}" in store.describe()


# ------------------------------------------------------------------------------------------------------------ speed


def median_ms(function: object, repeats: int = 50) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()  # type: ignore[operator]
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


@pytest.mark.data
def test_batches_of_qm9_are_quick(data_dir: Path) -> None:
    """100 molecules with edges in under 3 ms; the bound here is loose because other processes may be running."""
    store = load("qm9", root=data_dir / "qm9").with_neighbors(5.0)
    rows = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))[:100]
    assert median_ms(lambda: store.batch(rows)) < 15


@pytest.mark.gpu
def test_batches_on_the_gpu_equal_those_on_the_cpu(mixed: Store, molecules: Store) -> None:
    for store in (mixed, molecules):
        here, there = store.with_neighbors(CUTOFF), store.to("cuda").with_neighbors(CUTOFF)
        assert there.hash() == here.hash()
        for rows in (torch.tensor([5, 0, 3]), torch.tensor([5, 0, 3], device="cuda")):
            graph = there.batch(rows)
            assert graph.pos.is_cuda
            assert_same_graph(graph.cpu(), here.batch([5, 0, 3]))
        assert_same_graph(here.to("cuda").batch([1, 2]).cpu(), here.batch([1, 2]))
        assert there.select([1, 2]).hash() == here.select([1, 2]).hash()
