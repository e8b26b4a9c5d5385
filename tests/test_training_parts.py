"""Learning rates, averaged weights, reference energies, and where training runs."""

import math
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from simkit import potentials
from simkit.datasets.store import Store
from simkit.errors import ConfigError, DeviceError, ElementError, LabelError
from simkit.interrupt import Interrupt
from simkit.potential import Potential
from simkit.training.distributed import resolve_device, sum_over_processes
from simkit.training.log import TrainingLog
from simkit.training.options import TrainingOptions
from simkit.training.references import least_squares_references, set_reference_energies
from simkit.training.schedule import AveragedWeights, LearningRate

# ----------------------------------------------------------------------------------------------- learning rates


def rates(total: int = 100, **options: Any) -> LearningRate:
    return LearningRate(TrainingOptions(**({"learning_rate": 1e-2, "warmup_steps": 0} | options)), total)


def test_warm_up_is_linear() -> None:
    rate = rates(schedule="constant", warmup_steps=4)
    assert [rate(k) for k in range(6)] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_cosine() -> None:
    rate = rates(schedule="cosine", minimum_learning_rate=1e-4)
    assert rate(0) == pytest.approx(1e-2)
    assert rate(50) == pytest.approx((1e-2 + 1e-4) / 2)
    assert rate(100) == pytest.approx(1e-4)
    assert rate(1000) == pytest.approx(1e-4)
    values = [rate(k) for k in range(101)]
    assert values == sorted(values, reverse=True)
    torch_rate = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(torch_rate, T_max=100, eta_min=1e-4)
    for k in range(20):
        assert rate(k) == pytest.approx(torch_rate.param_groups[0]["lr"], rel=1e-9)
        torch_rate.step()
        scheduler.step()


def test_plateau() -> None:
    """It falls once the epochs without improvement are more than the patience, as PyTorch's, and not below the minimum."""
    rate = rates(schedule="plateau", plateau_patience=2, plateau_factor=0.5, minimum_learning_rate=2e-3)
    seen = []
    for loss in (5.0, 4.0, 4.0, 6.0, 4.5, 3.0, *[3.0] * 9):
        rate.observe(loss)
        seen.append(rate(0))
    assert seen == pytest.approx([1e-2] * 4 + [5e-3] * 4 + [2.5e-3] * 3 + [2e-3] * 4)
    assert rates(schedule="constant")(10**6) == 1e-2


def test_the_patience_of_a_plateau_is_in_epochs() -> None:
    """Also where only every fifth is validated."""
    rate = rates(schedule="plateau", plateau_patience=9, plateau_factor=0.5, validate_every=5)
    for loss in (1.0, 1.0):
        rate.observe(loss)
    assert rate(0) == 1e-2
    rate.observe(1.0)
    assert rate(0) == pytest.approx(5e-3)


def test_the_state_of_a_plateau() -> None:
    options: dict[str, Any] = {"schedule": "plateau", "plateau_patience": 1}
    whole, first, second = rates(**options), rates(**options), rates(**options)
    losses = [3.0, 4.0, 4.0, 2.0, 2.5, 2.5, 2.5, 1.0]
    for loss in losses[:5]:
        first.observe(loss)
    second.load_state_dict(first.state_dict())
    for loss in losses:
        whole.observe(loss)
    for loss in losses[5:]:
        second.observe(loss)
    assert second.state_dict() == whole.state_dict()


# --------------------------------------------------------------------------------------------- averaged weights


def test_averaged_weights_against_numpy() -> None:
    rng = np.random.default_rng(0)
    parameter = nn.Parameter(torch.tensor(rng.normal(size=4)))
    average = AveragedWeights([parameter], decay=0.6)
    expected = parameter.detach().numpy().copy()
    for n in range(12):
        value = rng.normal(size=4)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(value))
        average.update()
        decay = min(0.6, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    np.testing.assert_allclose(average.average[0].numpy(), expected, rtol=1e-12)
    assert not average.average[0].requires_grad


def test_swapping_twice_changes_nothing() -> None:
    model = nn.Linear(3, 2)
    average = AveragedWeights(list(model.parameters()), decay=0.9)
    with torch.no_grad():
        model.weight.add_(1.0)
    raw, mean = model.weight.detach().clone(), average.average[0].clone()
    average.swap()
    assert torch.equal(model.weight, mean)
    assert torch.equal(average.average[0], raw)
    average.swap()
    assert torch.equal(model.weight, raw)
    assert torch.equal(average.average[0], mean)


def test_the_state_of_averaged_weights() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    first, second = AveragedWeights([parameter], 0.9), AveragedWeights([parameter], 0.9)
    for k in range(5):
        with torch.no_grad():
            parameter.fill_(float(k))
        first.update()
    second.load_state_dict(first.state_dict())
    first.update()
    second.update()
    assert torch.equal(first.average[0], second.average[0])


# ------------------------------------------------------------------------------------------- reference energies

TRUE = {1: -13.6, 6: -1027.5, 8: -2041.3}


def compositions(info: dict[str, Any] | None = None, noise: float = 0.0, forces: bool = True) -> Store:
    """Structures of H, C and O whose energies are sums over their atoms, plus noise."""
    rng = np.random.default_rng(8)
    sizes = rng.integers(1, 9, 30)
    ptr = np.concatenate([[0], np.cumsum(sizes)])
    z = rng.choice(list(TRUE), ptr[-1])
    energy = np.add.reduceat(np.array([TRUE[k] for k in z.tolist()]), ptr[:-1]) + noise * rng.normal(size=30) * sizes
    labels = {"energy": energy} | ({"forces": rng.normal(0, 0.8, (ptr[-1], 3))} if forces else {})
    return Store(z, rng.normal(0, 10, (ptr[-1], 3)), ptr, labels, info=info)


def painn(elements: tuple[int, ...] = (1, 6, 8), anchored: bool = False) -> Potential:
    return potentials.build("painn", elements=elements, channels=4, layers=1, anchored=anchored)


def test_least_squares_is_exact_where_energies_are_additive() -> None:
    assert least_squares_references(compositions()) == pytest.approx(TRUE, rel=1e-10)


def test_least_squares_of_one_composition_reproduces_its_energy() -> None:
    """Two elements cannot be told apart, yet the sum is right."""
    store = Store([1, 8, 1, 1, 8, 1], np.eye(6, 3), [0, 3, 6], {"energy": np.array([-76.0, -77.0])})
    found = least_squares_references(store)
    assert 2 * found[1] + found[8] == pytest.approx(-76.5)


def test_references_scale_and_shift() -> None:
    store, potential = compositions(noise=0.3), painn()
    origin = set_reference_energies(potential, store)
    assert "least squares" in origin
    composition, energy, atoms = store.composition().numpy(), store.labels["energy"].numpy(), store.n_atoms.numpy()
    fitted = np.linalg.lstsq(composition, energy, rcond=None)[0]
    np.testing.assert_allclose(potential.reference.numpy(), fitted, rtol=1e-9)
    assert float(potential.shift) == pytest.approx(np.mean((energy - composition @ fitted) / atoms), abs=1e-9)
    assert float(potential.scale) == pytest.approx(np.sqrt(np.mean(store.labels["forces"].numpy() ** 2)))


def test_the_scale_without_forces_is_the_spread_of_the_energy_per_atom() -> None:
    store, potential = compositions(noise=0.3, forces=False), painn()
    set_reference_energies(potential, store, TRUE)
    residual = (
        store.labels["energy"].numpy() - store.composition().numpy() @ np.array(list(TRUE.values()))
    ) / store.n_atoms.numpy()
    assert float(potential.scale) == pytest.approx(np.std(residual, ddof=1))
    assert float(potential.shift) == pytest.approx(np.mean(residual), abs=1e-9)


def test_where_references_come_from() -> None:
    isolated = {1: -13.0, 6: -1027.0, 8: -2041.0}
    store = compositions({"references": {"energy": {str(z): e for z, e in isolated.items()}}})  # JSON has text for keys

    def references(**options: Any) -> tuple[str, dict[int, float]]:
        potential = painn()
        origin = set_reference_energies(potential, store, **options)
        return origin, dict(zip(potential.elements, potential.reference.tolist(), strict=True))

    assert references() == ("isolated atoms of the data set", isolated)
    assert references(given=TRUE | {79: 1.0}) == ("given", TRUE)
    origin, found = references(least_squares=True)
    assert "least squares" in origin
    assert found == pytest.approx(TRUE, rel=1e-10)


def test_isolated_atoms_are_not_taken_where_one_is_missing() -> None:
    store = compositions({"references": {"energy": {1: -13.0, 6: -1027.0}}})
    assert "least squares" in set_reference_energies(painn(), store)


def test_an_element_that_no_training_structure_holds() -> None:
    potential = painn((1, 6, 8, 9))
    set_reference_energies(potential, compositions())
    assert float(potential.reference[3]) == 0.0


def test_an_anchored_potential_has_no_shift() -> None:
    store, potential = compositions(noise=0.3), painn(anchored=True)
    offset = {z: e + 5.0 for z, e in TRUE.items()}
    set_reference_energies(potential, store, offset)
    assert float(potential.shift) == 0.0
    assert float(potential.scale) == pytest.approx(5.0, rel=0.1)  # the network carries the binding energy per atom
    assert dict(zip(potential.elements, potential.reference.tolist(), strict=True)) == pytest.approx(offset)


def test_a_single_structure() -> None:
    store = compositions(forces=False).select([3])
    potential = painn()
    set_reference_energies(potential, store)
    assert float(potential.scale) == 1.0


def test_missing_elements_and_labels() -> None:
    with pytest.raises(ElementError, match="no reference energy for O"):
        set_reference_energies(painn(), compositions(), {1: -13.6, 6: -1027.5})
    with pytest.raises(ElementError, match="structure holds O"):
        set_reference_energies(painn((1, 6)), compositions(), {1: -13.6, 6: -1027.5})
    store = compositions()
    with pytest.raises(LabelError, match="found none"):
        set_reference_energies(painn(), Store(store.z, store.pos, store.ptr))


# ------------------------------------------------------------------------------------------------------- others


def test_devices() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="unknown device 'gpu'; expected auto, cpu, cuda"):
        resolve_device("gpu")
    with pytest.raises(DeviceError, match="'cuda:99' was asked for"):
        resolve_device("cuda:99")
    with pytest.raises(ConfigError, match="'mps'"):
        resolve_device("mps")


def test_one_process_sums_nothing() -> None:
    from simkit.training.distributed import make_fabric

    fabric, values = make_fabric("cpu", "float32"), torch.ones(3)
    assert fabric.world_size == 1
    assert sum_over_processes(fabric, values) is values


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGINT)
    entered = []

    def work() -> None:
        with Interrupt().watch():
            entered.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered == [before]


def test_the_log_is_replaced_as_a_whole(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path, [{"epoch": 1, "loss": 0.1 + 0.2}], tensorboard=False, active=True)
    log.add({"epoch": 2, "loss": math.pi})
    assert (tmp_path / "log.csv").read_text() == f"epoch,loss\n1,{0.1 + 0.2!r}\n2,{math.pi!r}\n"
    silent = TrainingLog(tmp_path / "second", [], tensorboard=False, active=False)
    silent.add({"epoch": 1})
    assert not (tmp_path / "second").exists()
