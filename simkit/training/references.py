"""Reference energies, scale and shift of a potential, from the training data; the same for each of its properties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from ase.data import atomic_masses
from torch import Tensor

from simkit.datasets.store import Store
from simkit.errors import LabelError
from simkit.graph import LABELS
from simkit.potential import Potential
from simkit.properties import ELECTRONS, KINDS, Standard


def least_squares_references(store: Store) -> dict[int, float]:
    """Return the energy per element, eV, that explains the total energies best: least squares on the composition.

    Where the compositions cannot tell elements apart (all frames of one molecule) the solution of least norm is taken: a good
    origin for training, but not the energy of any atom.
    """
    counts = store.composition().cpu()
    energies = store.labels["energy"].double().cpu()
    solution = torch.linalg.lstsq(counts, energies.unsqueeze(1), driver="gelsd").solution.squeeze(1)
    return dict(zip(store.elements, solution.tolist(), strict=True))


def set_reference_energies(
    potential: Potential, train: Store, given: Mapping[int, float] | None = None, *, least_squares: bool = False
) -> str:
    """Set reference energies, scale and shift from the training data and return, in words, where they came from.

    Energies are taken as ``given``, else from the isolated atoms of the data set, else (or if asked for) by least squares. What
    is left on average per atom goes into the shift, unless the potential is anchored to its isolated atoms. The scale is the
    root mean square of the force components or, without forces, the spread of the energy per atom.

    Raises:
        LabelError: if the store has no energies.
        ElementError: if given references lack an element, or the data hold one that the potential does not know.
    """
    if "energy" not in train.labels:
        raise LabelError("reference energies need energies in the training data; found none")
    potential.check_elements(train.elements)
    isolated = {int(z): float(e) for z, e in train.info.get("references", {}).get("energy", {}).items()}
    if given is not None:
        references, origin = dict(given), "given"
    elif not least_squares and set(potential.elements) <= set(isolated):
        references, origin = isolated, "isolated atoms of the data set"
    else:
        fitted = least_squares_references(train)
        # An element that no training structure holds has no energy to fit.
        references = {z: fitted.get(z, 0.0) for z in potential.elements}
        origin = "least squares on the training energies"
    potential.set_references(references)
    table = torch.tensor([references[z] for z in train.elements], dtype=torch.float64)
    atoms = train.n_atoms.double().cpu()
    residual = (train.labels["energy"].cpu() - train.composition().cpu() @ table) / atoms
    if not potential.anchored:
        potential.shift.fill_(float(residual.mean()))
    if "forces" in train.labels:
        scale = float(train.labels["forces"].double().square().mean().sqrt())
    else:
        scale = float(residual.std()) if len(train) > 1 else 0.0
    if potential.anchored:  # the network itself has to carry the whole binding energy
        scale = max(scale, float(residual.abs().mean()))
    potential.scale.fill_(scale if scale > 1e-6 else 1.0)
    return origin


def set_property_standards(potential: Potential, train: Store, *, least_squares: bool = False) -> dict[str, str]:
    """Set reference, scale and shift of every property from the training data; return in words where each came from.

    Extensive properties (U0, U, H, G, Cv, zpve, alpha, ...) count from the values of isolated atoms where the data set has them for all
    elements (QM9: its published U0, U, H, G and Cv of atoms), else (or if asked for) from a least-squares fit of the composition; what is
    left per atom on average is the shift, its spread the scale. Intensive ones (homo, lumo, gap) count from their mean, in units of their
    spread; atomic ones from the mean of each element. r2 counts from a fit of electrons and extent per element (see
    `simkit.properties.Properties`). Dipoles need nothing.

    Raises:
        LabelError: if the store lacks the label of a property.
        ElementError: if the data hold an element that the potential does not know.
    """
    potential.check_elements(train.elements)
    origins = {}
    for name in potential.standards:
        if name == ELECTRONS:
            continue
        if name not in train.labels:
            raise LabelError(
                f"the references of {name} need its values in the training data; found {', '.join(train.labels)}"
            )
        origins[name] = _SETTERS[KINDS[name]](potential, name, train, least_squares)
    return origins


def _set_extensive(potential: Potential, name: str, train: Store, least_squares: bool) -> str:
    """Also for the tensor of the polarizability, whose isotropic part is extensive."""
    label = train.labels[name].double().cpu()
    values = label if label.dim() == 1 else label.diagonal(dim1=1, dim2=2).mean(dim=1)
    counts, atoms = _composition(train, potential.elements), train.n_atoms.double().cpu()
    isolated = {int(z): float(value) for z, value in train.info.get("references", {}).get(name, {}).items()}
    if not least_squares and set(potential.elements) <= set(isolated):
        references = torch.tensor([isolated[z] for z in potential.elements], dtype=torch.float64)
        origin = "isolated atoms of the data set"
    else:
        references, origin = _least_squares(counts, values), "least squares on the composition"
    residual = (values - counts @ references) / atoms
    shift = float(residual.mean())
    if label.dim() == 1:
        spread = _spread(residual - shift)
    else:  # the scale serves the anisotropic part as well
        baseline = (counts @ references + shift * atoms)[:, None, None] * torch.eye(3, dtype=torch.float64)
        spread = _rms((label - baseline) / atoms[:, None, None])
    _standard(potential, name).set(references.tolist(), _usable(spread, values / atoms), shift)
    return origin


def _set_intensive(potential: Potential, name: str, train: Store, least_squares: bool) -> str:
    values = train.labels[name].double().cpu()
    shift = float(values.mean())
    spread = _usable(_spread(values - shift), values)
    _standard(potential, name).set([0.0] * len(potential.elements), spread, shift)
    return "mean of the training data"


def _set_atomic(potential: Potential, name: str, train: Store, least_squares: bool) -> str:
    values = train.labels[name].double().cpu()
    z = train.z.cpu()
    means = [float(values[z == element].mean()) if element in train.elements else 0.0 for element in potential.elements]
    table = torch.zeros(max(potential.elements) + 1, dtype=torch.float64)
    table[potential.elements] = torch.tensor(means, dtype=torch.float64)
    _standard(potential, name).set(means, _usable(_rms(values - table[z.long()]), values), 0.0)
    return "means of the elements"


def _set_extent(potential: Potential, name: str, train: Store, least_squares: bool) -> str:
    values, count = train.labels[name].double().cpu(), len(potential.elements)
    moments, counts = _moments(train, potential.elements), _composition(train, potential.elements)
    design = torch.cat([moments, counts], dim=1)
    solution = _least_squares(design, values)
    spread = _usable(_spread(values - design @ solution), values)
    # Either term alone, scaled like this, could make up for all that the fit leaves.
    per_moment = spread / max(float(moments.sum(dim=1).mean()), 1.0)
    _standard(potential, ELECTRONS).set(solution[:count].tolist(), per_moment, 0.0)
    _standard(potential, name).set(solution[count:].tolist(), spread / float(counts.sum(dim=1).mean()), 0.0)
    return "least squares on composition and second moments"


_SETTERS = {
    "extensive": _set_extensive,
    "polarizability": _set_extensive,
    "intensive": _set_intensive,
    "atomic": _set_atomic,
    "extent": _set_extent,
}


def reference_sums(potential: Potential, store: Store, name: str) -> Tensor:
    """Return what the atoms of each structure add to an extensive property, [F] float64 on the CPU, in the label's unit."""
    return _composition(store, potential.elements) @ _standard(potential, name).reference.cpu()


def label_spread(store: Store, name: str) -> float:
    """Return the root mean square of what least squares on the composition and a constant leave of a label, in its unit.

    It is what there is to learn, and makes errors of different labels comparable. Of ``r2`` the second moments of the elements explain a
    part, too; of labels per atom the means of the elements; of forces nothing is explained. One if nothing is left.
    """
    values, elements = store.labels[name].double().cpu(), store.elements
    flat = values.reshape(len(values), -1)
    if name == "forces":
        return _usable(_rms(flat), flat)
    if LABELS[name].per == "atom":
        design = torch.nn.functional.one_hot(torch.searchsorted(torch.tensor(elements), store.z.cpu().long())).double()
    else:
        design = torch.cat([_composition(store, elements), torch.ones(len(store), 1, dtype=torch.float64)], dim=1)
    if name == "r2":
        design = torch.cat([_moments(store, elements), design], dim=1)
    if len(flat) <= 2 * design.shape[1]:  # too few to fit anything
        return _usable(_rms(flat - flat.mean(dim=0)), flat)
    return _usable(_rms(flat - design @ _least_squares(design, flat)), flat)


def _composition(store: Store, elements: Sequence[int]) -> Tensor:
    """How many atoms of each of ``elements`` the structures have, [F, n_elements] float64 on the CPU."""
    counts = torch.zeros(len(store), len(elements), dtype=torch.float64)
    counts[:, [list(elements).index(z) for z in store.elements]] = store.composition().cpu()
    return counts


def _moments(store: Store, elements: Sequence[int]) -> Tensor:
    """The sum of |r|^2 about the centre of mass over the atoms of each element, [F, n_elements] float64, angstrom^2."""
    z, pos, sizes = store.z.long().cpu(), store.pos.double().cpu(), store.n_atoms.cpu()
    frame = torch.repeat_interleave(torch.arange(len(store)), sizes)
    masses = torch.from_numpy(atomic_masses)[z].unsqueeze(1)
    total = torch.zeros(len(store), 1, dtype=torch.float64).index_add(0, frame, masses)
    center = torch.zeros(len(store), 3, dtype=torch.float64).index_add(0, frame, masses * pos) / total
    squared = (pos - center[frame]).square().sum(dim=1)
    column = torch.searchsorted(torch.tensor(elements), z)
    flat = torch.zeros(len(store) * len(elements), dtype=torch.float64)
    return flat.index_add(0, frame * len(elements) + column, squared).reshape(len(store), len(elements))


def _least_squares(design: Tensor, values: Tensor) -> Tensor:
    """The solution of least norm, [columns] or [columns, K]."""
    solution = torch.linalg.lstsq(design, values.reshape(len(values), -1), driver="gelsd").solution
    return solution.squeeze(1) if values.dim() == 1 else solution


def _standard(potential: Potential, name: str) -> Standard:
    return potential.standards[name]  # type: ignore[return-value]


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _spread(values: Tensor) -> float:
    return float(values.std()) if len(values) > 1 else 0.0


def _usable(spread: float, values: Tensor) -> float:
    """A spread that is more than rounding of the values; otherwise one."""
    return spread if spread > 1e-9 * float(values.abs().max()) else 1.0
