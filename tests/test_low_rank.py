"""Potentials with more elements and weights that train in part: nothing changes before training, and nothing that should not after it."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ase import Atoms
from ase.build import molecule
from finetune_cases import CUTOFF, ELEMENTS, clusters, small, started
from torch import Tensor, nn

import simkit
from simkit import potentials
from simkit.errors import ConfigError
from simkit.graph import AtomGraph
from simkit.potential import Potential
from simkit.training.elements import add_elements
from simkit.training.finetune import merged, what_trains
from simkit.training.fit import FitResult, fit
from simkit.training.losses import PotentialObjective
from simkit.training.low_rank import FreshEntries, LowRankUpdate, add_update, largest_rank, merge_updates
from simkit.training.options import LossTerm, TrainingOptions

every = pytest.mark.parametrize("name", potentials.available())


def ethanol_graph(dtype: torch.dtype = torch.float64) -> AtomGraph:
    frame = molecule("CH3CH2OH")
    frame.rattle(0.1, seed=3)
    return AtomGraph.from_ase([frame, molecule("H2O"), Atoms("C")], CUTOFF)


def disturb(potential: Potential, seed: int = 0) -> None:
    """Move everything that trains, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in potential.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def assert_same_results(first: Mapping[str, Tensor], second: Mapping[str, Tensor], relative: float) -> None:
    for key, value in first.items():
        bound = relative * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(second[key], value, rtol=0.0, atol=bound)


# ---------------------------------------------------------------------------------------------------------- new elements


@every
@pytest.mark.parametrize("numbers", [[7], [3, 9, 17]])
def test_new_elements_leave_the_old_ones_alone(name: str, numbers: list[int]) -> None:
    """Before, between and behind the old elements; equal up to the rounding of longer sums."""
    potential, graph = small(name), ethanol_graph()
    grown, fresh = add_elements(potential, numbers, seed=1)
    assert grown.elements == sorted([*ELEMENTS, *numbers])
    assert_same_results(potential(graph), grown(graph), 1e-13)
    assert grown.reference[[grown.elements.index(z) for z in numbers]].abs().max() == 0.0
    if not potential.num_parameters:
        return
    # The new elements have weights of their own, which depend on the seed and nothing else does.
    other, _ = add_elements(potential, numbers, seed=2)
    new = AtomGraph.from_ase([Atoms(["O", numbers[0]], [[0, 0, 0], [1.1, 0, 0]])], CUTOFF)
    assert abs(float(grown(new)["energy"] - other(new)["energy"])) > 1e-6
    for key, p in grown.named_parameters():
        same = p == other.get_parameter(key)
        assert bool(same[~fresh[key]].all() if key in fresh else same.all())
    assert sum(int(mask.sum()) for mask in fresh.values()) == grown.num_parameters - potential.num_parameters


def test_known_elements_change_nothing() -> None:
    potential = small()
    grown, fresh = add_elements(potential, [8, 1])
    assert grown is potential
    assert fresh == {}


def test_elements_can_be_added_twice() -> None:
    """In two steps and in one: the old energies are the same, the elements in order."""
    potential, graph = small(), ethanol_graph()
    twice, _ = add_elements(add_elements(potential, [17], seed=5)[0], [7], seed=6)
    assert twice.elements == [1, 6, 7, 8, 17]
    assert_same_results(potential(graph), twice(graph), 0.0)


def test_an_architecture_that_cannot_grow_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from simkit.potentials.painn import PaiNN

    class Odd(PaiNN):
        def __init__(self, options: Any, cutoff: float, num_elements: int) -> None:
            super().__init__(options, cutoff, num_elements)
            self.pairs = nn.Parameter(torch.zeros(num_elements * num_elements))

    monkeypatch.setattr("simkit.potentials.painn.PaiNN", Odd)
    with pytest.raises(ConfigError, match=r"painn cannot learn more elements \(N\).*pairs"):
        add_elements(small(), [7])


# ------------------------------------------------------------------------------------------------- weights that train in part


def test_low_rank_update_is_the_sum_in_the_paper() -> None:
    weight = torch.randn(2, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    update = LowRankUpdate(weight, 3, torch.Generator().manual_seed(1))
    assert torch.equal(update(weight), weight)
    with torch.no_grad():
        update.b.copy_(torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(2)))
    expected = weight.clone()
    for k in range(2):
        for i in range(5):
            for j in range(7):
                for r in range(3):
                    expected[k, i, j] += update.b[k, i, r] * update.a[k, r, j]
    torch.testing.assert_close(update(weight), expected, rtol=1e-13, atol=1e-13)
    assert float(update.a.detach().std() / weight.std()) == pytest.approx(1.0, rel=0.4)


@pytest.mark.parametrize(
    ("shape", "rank"), [((4, 4), 1), ((64, 64), 31), ((3, 2), 1), ((2, 100), 1), ((1, 9), 0), ((9,), 0)]
)
def test_largest_rank_is_the_last_that_saves_anything(shape: tuple[int, ...], rank: int) -> None:
    assert largest_rank(torch.zeros(shape)) == rank
    if len(shape) == 2:
        rows, columns = shape
        assert rank * (rows + columns) < rows * columns <= (rank + 1) * (rows + columns)


def test_fresh_entries_alone_train() -> None:
    model = nn.Linear(3, 4, bias=False).requires_grad_(False)
    before = model.weight.clone()
    fresh = torch.tensor([[True, False, False], [False] * 3, [False, True, True], [False] * 3])
    add_update(model, "weight", FreshEntries(before, fresh))
    assert torch.equal(model.weight, before)
    model(torch.ones(1, 3)).sum().backward()
    (entries,) = [p for p in model.parameters() if p.requires_grad]
    assert entries.shape == (3,)
    with torch.no_grad():
        entries.add_(1.0)
    assert torch.equal(model.weight, before + fresh.float())


def test_updates_in_a_list_of_parameters_are_merged() -> None:
    """Some architectures keep their matrices in such lists; the order and the names stay."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList([nn.Parameter(torch.randn(6, 6)) for _ in range(3)])

        def forward(self, x: Tensor) -> Tensor:
            for weight in self.weights:
                x = x @ weight
            return x

    model, x = Model().requires_grad_(False), torch.randn(2, 6)
    names, values = list(model.state_dict()), [w.clone() for w in model.weights]
    add_update(model, "weights.1", LowRankUpdate(model.weights[1], 2, torch.Generator().manual_seed(0)))
    assert torch.equal(model(x), x @ values[0] @ values[1] @ values[2])
    with torch.no_grad():
        model.get_parameter("weights.parametrizations.1.0.b").fill_(0.3)
    expected = model(x)
    merge_updates(model, {})
    assert torch.equal(model(x), expected)
    assert sorted(model.state_dict()) == sorted(names)
    assert torch.equal(model.weights[2], values[2])


MODES = [{"mode": "full"}, {"mode": "frozen"}, {"mode": "low_rank", "rank": 2}]


@every
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["mode"])
def test_merged_model_is_an_ordinary_one_with_the_same_energies(
    name: str, mode: dict[str, Any], tmp_path: Path
) -> None:
    parent = small(name)
    if not parent.num_parameters:
        with pytest.raises(ConfigError, match="no weights to train"):
            started(parent, tmp_path, **mode)
        return
    graph = ethanol_graph()
    potential = started(parent, tmp_path, [1, 7], **mode)
    assert_same_results(parent(graph), potential(graph), 1e-13)
    disturb(potential)
    trained = potential(graph)
    assert abs(float((trained["energy"] - parent(graph)["energy"]).abs().max())) > 1e-5
    last = {key: p.detach() + 0.01 for key, p in potential.named_parameters() if p.requires_grad}
    result = merged(potential, FitResult([], 0, last, 0.0, 0))
    assert_same_results(trained, potential(graph), 0.0)
    plain = potentials.from_header(potential.header())
    assert set(potential.state_dict()) == set(plain.state_dict())
    assert potential.num_parameters == plain.num_parameters
    potential.save(tmp_path / "child.safetensors")
    assert_same_results(trained, simkit.load(tmp_path / "child.safetensors")(graph), 0.0)

    # The weights of the last step are those of the plain model, too.
    again = started(parent, tmp_path, [1, 7], **mode)
    for key, value in last.items():
        with torch.no_grad():
            again.get_parameter(key).copy_(value)
    potential.load_state_dict({**potential.state_dict(), **result.last_weights})
    assert_same_results(again(graph), potential(graph), 0.0)


OPTIONS = {"epochs": 3, "batch_size": 4, "learning_rate": 5e-3, "weight_decay": 0.1, "ema_decay": 0.9, "device": "cpu"}


def objective() -> PotentialObjective:
    return PotentialObjective({"energy": LossTerm(weight=0.1), "forces": LossTerm(weight=1.0)})


def trained(potential: Potential, folder: Path, **changes: Any) -> Potential:
    """The potential after a few steps with weight decay, merged."""
    options = TrainingOptions(**{**OPTIONS, "precision": "float64", **changes})
    return_value = fit(potential, objective(), clusters(), None, options, folder / "run")
    merged(potential, return_value)
    return potential


@pytest.mark.parametrize("name", ["painn", "nequip", "ani"])
def test_frozen_trains_heads_and_new_elements_only(name: str, tmp_path: Path) -> None:
    parent = small(name, elements=[6, 8])
    start, fresh = add_elements(parent, [1], seed=3)
    potential = trained(started(parent, tmp_path, [1, 6], mode="frozen"), tmp_path)
    for key, p in potential.named_parameters():
        before = start.get_parameter(key)
        if key.startswith("heads."):
            assert not torch.equal(p, before)
        else:
            kept = ~fresh[key] if key in fresh else torch.ones_like(p, dtype=torch.bool)
            assert torch.equal(p[kept], before[kept])
    moved = [key for key in fresh if not torch.equal(potential.get_parameter(key), start.get_parameter(key))]
    assert moved


@pytest.mark.parametrize("name", ["painn", "nequip", "mpnn"])
def test_low_rank_changes_matrices_by_that_rank(name: str, tmp_path: Path) -> None:
    parent = small(name)
    potential = trained(started(parent, tmp_path, mode="low_rank", rank=2), tmp_path)
    ranks = []
    for key, p in potential.named_parameters():
        change = p.detach() - parent.get_parameter(key).detach()
        if key.startswith("heads."):
            assert bool(change.any())
        elif largest_rank(p) >= 2:
            ranks.append(int(torch.linalg.matrix_rank(change, atol=1e-10).max()))
        else:
            assert not bool(change.any())
    assert max(ranks) == 2


def test_layers_choose_what_trains(tmp_path: Path) -> None:
    parent = small()
    frozen = started(parent, tmp_path, mode="frozen", layers=["*.updates.1.*", "*.filters.1.*"])
    trains = {key for key, p in frozen.named_parameters() if p.requires_grad and not key.startswith("heads.")}
    assert trains == {key for key, _ in parent.named_parameters() if ".updates.1." in key or ".filters.1." in key}
    low_rank = started(parent, tmp_path, mode="low_rank", rank=1, layers=["*.filters.*"])
    updated = {
        key.split(".parametrizations")[0] for key, _ in low_rank.named_parameters() if ".parametrizations." in key
    }
    assert updated == {"representation.filters.0", "representation.filters.1"}
    with pytest.raises(ConfigError, match=r"start.layers: no weight outside the heads is called 'updates.\*'"):
        started(parent, tmp_path, mode="frozen", layers=["updates.*"])


def test_a_rank_that_saves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start.rank 16 saves nothing.*the largest that does is 14"):
        started(small(), tmp_path, mode="low_rank", rank=16)
    assert started(small(), tmp_path, mode="low_rank", rank=14).num_parameters
    with pytest.raises(ConfigError, match="no matrix to update"):
        started(small(), tmp_path, mode="low_rank", layers=["*.bias"])
    with pytest.raises(ConfigError, match=r"no weight outside the heads is called 'heads\.\*'"):
        started(small(), tmp_path, mode="low_rank", layers=["heads.*"])


def test_what_trains_adds_up(tmp_path: Path) -> None:
    parent = small()
    total, heads = parent.num_parameters, sum(p.numel() for p in parent.heads.parameters())
    assert what_trains(started(parent, tmp_path)) == (
        f"{total:,} numbers train ({total - heads:,} in representation, {heads:,} in heads) in a model of {total:,}"
    )
    assert what_trains(started(parent, tmp_path, mode="frozen")) == (
        f"{heads:,} numbers train ({heads:,} in heads) in a model of {total:,}"
    )
    grown = add_elements(parent, [7])[0].representation
    updates = sum(2 * sum(p.shape) for p in grown.parameters() if largest_rank(p) >= 2)
    text = what_trains(started(parent, tmp_path, [7], mode="low_rank", rank=2))
    assert text.startswith(f"{heads + updates + 16:,} numbers train (")
    for part in (f"{updates:,} in low-rank updates", "16 in entries of new elements", f"model of {total + 16:,}"):
        assert part in text


# ------------------------------------------------------------------------------------------------------------- resuming


class Interrupted(PotentialObjective):
    """An objective that interrupts its training in the middle of a step."""

    def __init__(self, step: int) -> None:
        super().__init__(objective().terms)
        self.remaining = step

    def __call__(
        self, model: nn.Module, batch: AtomGraph, counts: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self.remaining -= model.training
        if self.remaining == 0:
            signal.raise_signal(signal.SIGINT)
        return super().__call__(model, batch, counts)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode["mode"])
def test_interrupted_and_resumed_equals_uninterrupted(mode: dict[str, Any], tmp_path: Path) -> None:
    parent, store = small(dtype="float32", elements=[6, 8]), clusters()
    options = TrainingOptions(**OPTIONS)

    def begin() -> Potential:
        return started(parent, tmp_path, [1], **mode)

    whole, parts = begin(), begin()
    expected = merged(whole, fit(whole, objective(), store, None, options, tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        fit(begin(), Interrupted(5), store, None, options, tmp_path / "parts")
    found = merged(parts, fit(parts, objective(), store, None, options, tmp_path / "parts", resume=True))
    graph = store.batch(torch.arange(len(store)))
    assert_same_results(whole(graph), parts(graph), 0.0)
    for key, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[key], value)
    assert expected.last_weights.keys() == found.last_weights.keys()
    assert all(torch.equal(found.last_weights[key], value) for key, value in expected.last_weights.items())
