"""Compiled networks: what is traced against the networks themselves, when they are compiled, and what happens where that fails."""

import copy
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from fast_cases import beyond, differences, ethanol, everything, graph, narrow, silicon, slab

from simkit import potentials
from simkit.errors import ConfigError, GeometryError, OutputError, SimkitError
from simkit.fast import build, compilation
from simkit.fast.artefact import artefact_path, find_artefact
from simkit.fast.compiled import CompiledNetwork
from simkit.fast.potential import NOT_COMPILED, FastPotential
from simkit.fast.trace import Inputs, _evaluate, needs_species, weights_of
from simkit.graph import AtomGraph
from simkit.md.ensembles.nve import NVE
from simkit.md.run import run_md
from simkit.potential import Potential

OUTPUTS = ("energy", "energies", "forces")
SMALL: dict[str, dict[str, Any]] = {
    "ani": {"angular_cutoff": 3.0, "hidden": (8,), "channels": 4},
    "dimenet++": {"layers": 2, "channels": 8},
    "egnn": {"layers": 2, "channels": 8, "update_coordinates": True},
    "mace": {"layers": 2, "channels": 4, "l_max": 2},
    "mpnn": {"layers": 2, "channels": 8},
    "nequip": {"layers": 3, "channels": 4},
    "physnet": {"layers": 2, "channels": 8},
    "se3_transformer": {"layers": 2, "channels": 4, "value_channels": 4, "heads": 2, "l_max": 2},
    "tfn": {"layers": 3, "channels": 4, "parity": True},
}
"""All that are compiled."""


def model(architecture: str, **options: Any) -> Potential:
    chosen: dict[str, Any] = {"cutoff": 4.0, "dtype": "float64", "seed": 5} | SMALL.get(architecture, {})
    built = potentials.build(architecture, elements=[1, 6, 8, 14], **{**chosen, **options})
    built.set_references({1: -13.6, 6: -1030.0, 8: -2040.0, 14: -7870.0})
    built.scale.fill_(1.7)
    built.shift.fill_(-0.4)
    return built.requires_grad_(False)


class Traced(CompiledNetwork):
    """The function that is compiled, with the same inputs, but run by Python."""

    def __init__(self, potential: Potential, path: Path, present: tuple[int, ...]) -> None:
        self.potential = potential
        super().__init__(potential, path, present)

    def _load(self) -> None:
        def run(inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            pairs, vectors, species, *arranged = inputs[len(self.weights) :]
            assert all(tensor.shape[-1] >= 2 for tensor in (pairs, species, *arranged))
            return _evaluate(self.potential, Inputs(pairs, vectors, species, tuple(arranged)), self.present)

        self._run = run


def traced(potential: Potential, edges: AtomGraph) -> FastPotential:
    """A fast path whose compiled network is there already."""
    fast = potential.fast()
    assert fast.compilation is not None
    present = tuple(torch.unique(potential.species(edges.z)).tolist()) if needs_species(potential) else ()
    fast.compilation.networks[present] = Traced(potential, Path(), present)
    return fast


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with nothing in it."""
    monkeypatch.setenv("SIMKIT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ------------------------------------------------------------------------------------------------- what is traced


def test_all_that_are_compiled_are_tested() -> None:
    known = {name for name in potentials.available() if potentials.architecture(name)[0].compiled_edges}
    assert known == set(SMALL)


@pytest.mark.parametrize("architecture", SMALL)
def test_the_traced_function_is_the_network(architecture: str) -> None:
    """Single atoms of a species make it add atoms of its own, which must change nothing."""
    for edges in (everything(), graph(ethanol()), graph(silicon(2, seed=1), narrow()), graph(slab(), beyond())):
        potential = model(architecture)
        fast = traced(potential, edges)
        found = differences(fast(edges, OUTPUTS), potential(edges, OUTPUTS))
        assert fast.reason == ""
        assert (fast.calls, fast.comparisons) == (1, 1)
        assert max(found.values()) < 1e-10
        assert found["forces"] < 1e-13


@pytest.mark.parametrize("architecture", ["mace", "egnn"])
def test_stress_and_anchored_models(architecture: str) -> None:
    edges = graph(silicon(2), narrow())
    for options in ({}, {"anchored": True}):
        potential = model(architecture, **options)
        fast = traced(potential, edges)
        found = differences(fast(edges, (*OUTPUTS, "stress")), potential(edges, (*OUTPUTS, "stress")))
        assert fast.last is not None
        assert fast.last.stress is not None
        assert max(found["stress"], found["forces"]) < 1e-13
        assert max(found["energy"], found["energies"]) < 1e-10
    with pytest.raises(GeometryError, match="periodic in all three"):
        traced(potential, graph(ethanol()))(graph(ethanol()), ("stress",))


def test_networks_for_more_species_are_used_for_fewer() -> None:
    potential = model("nequip")
    fast = traced(potential, everything())
    edges = graph(silicon(2), silicon(seed=3))
    assert max(differences(fast(edges, OUTPUTS), potential(edges, OUTPUTS)).values()) < 1e-10
    assert fast.calls == 1


def test_too_few_edges_are_left_to_the_reference() -> None:
    potential = model("egnn")
    fast = traced(potential, graph(ethanol()))
    for edges in (graph(Atoms("C")), graph(molecule("OH")), graph(beyond())):
        assert set(differences(fast(edges, OUTPUTS), potential(edges, OUTPUTS)).values()) == {0.0}


def test_large_graphs_are_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    potential, edges = model("egnn"), graph(silicon(2))
    fast = traced(potential, edges)
    monkeypatch.setattr(type(potential.representation), "compiled_edges", edges.edge_index.shape[1] - 1)
    assert set(differences(fast(edges, OUTPUTS), potential(edges, OUTPUTS)).values()) == {0.0}
    assert fast.calls == 0
    monkeypatch.setattr(type(potential.representation), "compiled_edges", edges.edge_index.shape[1])
    fast(edges, OUTPUTS)
    assert fast.calls == 1


def test_atoms_at_the_same_place() -> None:
    atoms = ethanol()
    atoms.positions[3] = atoms.positions[4]
    with pytest.raises(GeometryError, match="same place"):
        traced(model("egnn"), graph(ethanol()))(graph(atoms))


def test_changed_species_are_noticed() -> None:
    potential = model("mace")
    fast, edges = traced(potential, graph(ethanol(), silicon())), graph(ethanol())
    for z in ([6, 6, 8, 1, 1, 1, 1, 1, 1], [6, 6, 8, 1, 1, 1, 1, 1, 14]):
        edges.z.copy_(torch.tensor(z))
        assert differences(fast(edges), potential(edges))["forces"] < 1e-13


def test_wrong_networks_are_given_up() -> None:
    potential, edges = model("egnn"), graph(ethanol())
    fast = traced(potential, edges)
    fast.compilation.networks[()].potential = model("egnn", seed=6)  # type: ignore[union-attr, attr-defined]
    with pytest.warns(RuntimeWarning, match="given up after 1 calls: forces differ by up to"):
        found = fast(edges, OUTPUTS)
    assert set(differences(found, potential(edges, OUTPUTS)).values()) == {0.0}
    assert fast.compilation is None
    with pytest.raises(ConfigError, match="given up"):
        fast.compare(edges)


def test_what_is_compiled_is_tried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for architecture in ("egnn", "mace"):
        potential = model(architecture)
        present = (0, 2, 3) if needs_species(potential) else ()
        monkeypatch.setattr(build, "CompiledNetwork", Traced)
        build.try_out(potential, Path(), present)
        wrong = model(architecture, seed=6)
        monkeypatch.setattr(build, "CompiledNetwork", lambda p, path, s, wrong=wrong: Traced(wrong, path, s))
        with pytest.raises(SimkitError, match="is wrong for 3 atoms: forces differ"):
            build.try_out(potential, Path(), present)


# ------------------------------------------------------------------------------------------- when it is compiled


def test_files_are_shared_by_models_that_differ_in_weights_alone() -> None:
    path = artefact_path(model("mace"), (0, 1))
    assert artefact_path(model("mace", seed=1), (0, 1)) == path
    others = [
        model("mace", **{name: value}) for name, value in {"cutoff": 4.5, "neighbors": 9.0, "channels": 8}.items()
    ]
    paths = [artefact_path(other, (0, 1)) for other in (*others, model("mace", dtype="float32"))]
    assert len({path, artefact_path(model("mace"), (0, 2)), *paths}) == 6


def test_files_for_more_species_are_found() -> None:
    potential = model("mace")
    present = [(0, 1), (0, 1, 3), (0, 1, 2, 3)]
    paths = [artefact_path(potential, species) for species in present]
    paths[0].parent.mkdir(parents=True)
    assert find_artefact(potential, (1,)) is None
    for k in (2, 1, 0):
        paths[k].touch()
        assert find_artefact(potential, (1,)) == (paths[k], present[k])
    assert find_artefact(potential, (2,)) == (paths[2], present[2])
    assert find_artefact(model("mace", cutoff=5.0), (2,)) is None


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What is compiled: the file of each network, which holds nothing."""
    found: list[Path] = []

    def compile_network(potential: Potential, path: Path, present: tuple[int, ...]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        found.append(path)

    monkeypatch.setattr(compilation, "_compile", compile_network)
    monkeypatch.setattr(compilation, "CompiledNetwork", Traced)
    return found


def test_what_was_compiled_is_used_from_the_first_structure_on(compiled: list[Path]) -> None:
    potential, edges = model("nequip"), graph(ethanol())
    early = potential.fast()
    early(edges)
    assert early.reason == NOT_COMPILED
    assert not early.uses_compiled
    model("nequip", seed=7).fast().compile(edges.z)
    assert compiled == [artefact_path(potential, (0, 1, 2))]
    early(edges)  # nothing changes in the middle of a simulation
    assert (early.calls, early.reason) == (0, NOT_COMPILED)
    for late in (potential.fast(), copy.deepcopy(early), early):
        late.compile(edges.z)
        found = late(edges, OUTPUTS)
        assert (late.calls, late.reason, late.uses_compiled) == (1, "", True)
        assert differences(found, potential(edges, OUTPUTS))["forces"] < 1e-13
    assert len(compiled) == 1


def test_simulations_go_on_only_with_the_same_network(compiled: list[Path], tmp_path: Path) -> None:
    potential = model("egnn")

    def run(restart: bool, fast: bool = True) -> None:
        run_md(
            potential, ethanol(), NVE(0.2), out=tmp_path / "run", steps=4, temperature=50.0, dtype="float64", fast=fast,
            trajectory="none", restart=restart,
        )  # fmt: skip

    run(restart=False)
    potential.fast().compile(torch.tensor([1, 6, 8]))
    with pytest.raises(OutputError, match="compiled network True instead of None"):
        run(restart=True)
    run(restart=True, fast=False)


def test_a_failure_is_told_once(compiled: list[Path]) -> None:
    potential, edges = model("egnn"), graph(ethanol())
    artefact_path(potential, ()).parent.mkdir(parents=True)
    artefact_path(potential, ()).touch()
    fast = potential.fast()

    def fail(*_: object) -> None:
        raise RuntimeError("of another version")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Traced, "_load", fail)
        with pytest.warns(RuntimeWarning, match=r"cannot be loaded: of another version; the reference path goes on"):
            found = fast(edges)
    assert set(differences(found, potential(edges)).values()) == {0.0}
    assert set(differences(fast(edges), potential(edges)).values()) == {0.0}  # warnings are errors here


def test_damaged_files_are_removed(cache: Path) -> None:
    potential, edges = model("egnn"), graph(ethanol())
    path = artefact_path(potential, ())
    path.parent.mkdir(parents=True)
    path.write_bytes(b"nothing of use")
    fast = potential.fast()
    with pytest.warns(RuntimeWarning, match="cannot be loaded"):
        fast(edges)
    assert not path.exists()
    fast(edges)


@pytest.mark.parametrize("what", ["compiler", "graph"])
def test_processes_that_fail(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For real: without a compiler, and with an architecture that cannot be traced."""
    if what == "compiler":
        potential = model("egnn", layers=1, channels=2, update_coordinates=False)
        monkeypatch.setenv("CXX", "/nowhere/c++")
        said = "nowhere"
    else:
        potential = potentials.build("lennard_jones", elements=[1, 6, 8], cutoff=4.0)
        monkeypatch.setattr(type(potential.representation), "compiled_edges", 1000)
        said = "lennard_jones"
    fast, edges = potential.fast(), graph(ethanol())
    with pytest.warns(RuntimeWarning, match="could not be compiled: .*; the reference path goes on") as caught:
        fast.compile(edges.z)
    assert said in str(caught[0].message)
    assert "status 1" in fast.reason
    assert set(differences(fast(edges), potential(edges)).values()) == {0.0}


# ------------------------------------------------------------------------------------------------- the real thing


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "dtype"), [("mace", "float64"), ("nequip", "float32")])
def test_compiled_for_real(architecture: str, dtype: str, tmp_path: Path) -> None:
    """A minute each on one core. Then a second process takes it from the cache, with other weights."""
    potential = model(architecture, dtype=dtype, layers=2)
    fast, whole = potential.fast(), everything()
    assert not fast.is_ready(whole.z)
    fast.compile(whole.z)
    assert fast.is_ready(whole.z)
    limits = {"float32": (2e-5, 1e-5), "float64": (1e-12, 1e-10)}[dtype]
    sizes = [silicon(k, seed=k) for k in range(1, 6)]
    graphs = [whole, graph(ethanol()), graph(narrow()), *(graph(atoms) for atoms in sizes), graph(*sizes)]
    for k, edges in enumerate(graphs):
        outputs = (*OUTPUTS, "stress") if bool(edges.pbc.all()) else OUTPUTS
        found = differences(fast(edges, outputs), potential(edges, outputs))
        assert max(found["forces"], found.get("stress", 0.0)) < limits[0]
        assert max(found["energy"] / len(edges.z), found["energies"]) < limits[1]
        assert (fast.calls, fast.reason) == (k + 1, "")
    assert fast.last is not None
    assert fast.last.agrees
    torch.testing.assert_close(copy.deepcopy(fast)(whole)["forces"], fast(whole)["forces"], rtol=0, atol=0)
    other = model(architecture, dtype=dtype, layers=2, seed=8)
    other.save(tmp_path / "model.safetensors")
    program = f"""
        import sys, time
        from simkit import potentials
        from simkit.graph import AtomGraph
        from ase.build import molecule
        potential = potentials.load({str(tmp_path / "model.safetensors")!r})
        water = AtomGraph.from_ase(molecule("H2O"), 4.0)
        start = time.perf_counter()
        fast = potential.fast()
        force = fast(water)["forces"][0, 2]
        assert time.perf_counter() - start < 5 and fast.calls == 1, fast.reason
        print(float(force))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    expected = other(graph(molecule("H2O")))["forces"][0, 2]
    np.testing.assert_allclose(float(done.stdout), float(expected), rtol=0, atol=limits[0])


def test_weights_are_those_at_the_start() -> None:
    potential, edges = model("egnn"), graph(ethanol())
    assert len(weights_of(potential)) == len(list(potential.parameters()))
    network = CompiledNetwork.__new__(Traced)
    Traced.__init__(network, potential, Path(), ())
    before = [weight.clone() for weight in network.weights]
    with torch.no_grad():
        next(potential.parameters()).add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, network.weights, strict=True))
    assert edges.num_structures == 1
