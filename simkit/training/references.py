"""Reference energies, scale and shift of a potential, from the training data."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from simkit.datasets.store import Store
from simkit.errors import LabelError
from simkit.potential import Potential


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
