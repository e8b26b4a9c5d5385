"""What a store holds, as text, and heuristics that recognise labels in a wrong unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from simkit.graph import LABELS
from simkit.neighbors import neighbor_list
from simkit.units import BOHR, HARTREE, KCAL_PER_MOL, KJ_PER_MOL

if TYPE_CHECKING:
    from simkit.datasets.store import Store

_SAMPLE = 20
"""Structures whose distances are measured."""
_NOBLE = (2, 10, 18, 36, 54, 86)
_ENERGY_CAUSES = {
    1 / HARTREE: "they look like hartree; give energy_unit='hartree'",
    1 / KCAL_PER_MOL: "they look like kcal/mol; give energy_unit='kcal/mol'",
    1 / KJ_PER_MOL: "they look like kJ/mol; give energy_unit='kJ/mol'",
    HARTREE: "they were converted from hartree, but seem to be in eV already",
}
"""Energy over expected energy -> why."""
_LENGTH_CAUSES = {
    1 / BOHR: "they look like bohr; give length_unit='bohr'",
    0.1: "they look like nm; give length_unit='nm'",
    BOHR: "they were converted from bohr, but seem to be in angstrom already",
}
"""Distance over bond length -> why."""


def description(store: Store) -> str:
    """Return the text of `Store.describe`."""
    from ase.data import chemical_symbols

    counts = store.n_atoms
    elements = " ".join(chemical_symbols[number] for number in store.elements)
    low, high = int(counts.min()), int(counts.max())
    lines = [
        f"{store.name}: {len(store)} structures, {len(store.z)} atoms ({low if low == high else f'{low} to {high}'} "
        f"each), elements {elements}, "
        + ("isolated" if store.pbc is None else f"{int(store.pbc.any(1).sum())} of them periodic")
    ]
    if store.info.get("level_of_theory"):
        lines.append(f"level of theory: {store.info['level_of_theory']}")
    if store.info.get("source"):
        lines.append(f"source: {store.info['source']}")
    for name, value in store.labels.items():
        spec = LABELS[name]
        count = f"{len(value)} {'structures' if spec.per == 'graph' else 'atoms'}"
        text = f"  {name:<9} {count:<18} {float(value.min()):.6g} to {float(value.max()):.6g} {spec.unit}"
        if name in ("energy", "U0"):
            per_atom = value / counts
            text += f" ({float(per_atom.min()):.6g} to {float(per_atom.max()):.6g} per atom)"
        lines.append(text)
    for name, values in store.info.get("references", {}).items():
        atoms = ", ".join(f"{chemical_symbols[z]} {value:.6g}" for z, value in sorted(values.items()))
        lines.append(f"  isolated atoms, {name}: {atoms} {LABELS[name].unit}")
    lines += [f"  note: {note}" for note in store.info.get("notes", [])]
    lines += [f"  WARNING: {warning}" for warning in unit_warnings(store)]
    return "\n".join(lines)


def unit_warnings(store: Store) -> list[str]:
    """Return warnings, each with the likely cause, for energies, forces or positions that seem to be in a wrong unit.

    The thresholds are wide: bond lengths within a factor 1.6 of the covalent ones, forces between 1e-3 and 30
    eV/angstrom (RMS), energies that scatter by less than 5 eV per atom around a sum over elements.
    """
    warnings = _length_warnings(store)
    if "forces" in store.labels:
        warnings += _force_warnings(store)
    if "energy" in store.labels:
        warnings += _energy_warnings(store)
    return warnings


def _force_warnings(store: Store) -> list[str]:
    rms = float(store.labels["forces"].double().square().mean().sqrt())
    found = f"the forces have an RMS of {rms:.4g} eV/angstrom, usual are 0.1 to 5"
    if rms > 30:
        return [f"{found}: if they are in kcal/mol/angstrom, it is {rms * KCAL_PER_MOL:.3g} eV/angstrom"]
    if 0 < rms < 1e-3 and len(store) > 1:
        converted = rms * HARTREE / BOHR
        return [f"{found}: relaxed structures, or another unit (if it is hartree/bohr, {converted:.3g} eV/angstrom)"]
    return []


def _energy_warnings(store: Store) -> list[str]:
    """Judge the energy by its scatter and by the absolute size, which all-electron totals fix to within a few percent."""
    composition = store.composition().cpu()
    energy = store.labels["energy"].cpu()
    counts = composition.sum(1)
    fit = torch.linalg.lstsq(composition, energy.unsqueeze(1), driver="gelsd").solution
    scatter = float(((energy - (composition @ fit).squeeze(1)) / counts).std(correction=0))
    if scatter > 5:
        found = f"the energies scatter by {scatter:.3g} eV per atom around a sum over elements, usual is below 1"
        return [f"{found}: if they are in kcal/mol, by {scatter * KCAL_PER_MOL:.3g} eV; if not, look for outliers"]
    expected = float(
        (composition @ torch.tensor([_all_electron(z) for z in store.elements], dtype=torch.float64)).sum()
    )
    ratio = float(energy.sum()) / expected
    per_atom = float(energy.sum() / counts.sum())
    found = (
        f"the energies are {per_atom:.6g} eV per atom, the total energy of these atoms is near {per_atom / ratio:.6g}"
    )
    cause = _nearest_cause(ratio, _ENERGY_CAUSES, 0.2)
    if cause:
        return [f"{found} eV: {cause}"]
    return [f"{found} eV: they are in another unit"] if ratio > 1.5 and abs(per_atom) > 100 else []


def _length_warnings(store: Store) -> list[str]:
    """Compare the distance of every atom's nearest neighbor with the sum of covalent radii."""
    from ase.data import covalent_radii

    ratios = []
    nearest = np.inf
    bonded = int(store.n_atoms.max()) > 1
    for k in np.unique(np.linspace(0, len(store) - 1, _SAMPLE).astype(int)):
        start, end = int(store.ptr[k]), int(store.ptr[k + 1])
        z = store.z[start:end].cpu().numpy()
        cell = np.zeros((3, 3)) if store.cell is None else store.cell[k].cpu().numpy()
        pbc = np.zeros(3, dtype=bool) if store.pbc is None else store.pbc[k].cpu().numpy()
        pos = store.pos[start:end].double().cpu().numpy()
        found = neighbor_list(pos, cell, pbc, 6.0)
        if not found.edge_index.size:
            continue
        sender, receiver = found.edge_index
        distance = np.linalg.norm(pos[sender] + found.shift @ cell - pos[receiver], axis=1)
        nearest = min(nearest, float(distance.min()))
        relative = np.full(len(z), np.inf)
        usable = ~(np.isin(z[sender], _NOBLE) | np.isin(z[receiver], _NOBLE))
        bonds = distance / (covalent_radii[z[sender]] + covalent_radii[z[receiver]])
        np.minimum.at(relative, receiver[usable], bonds[usable])
        ratios.append(relative[np.isfinite(relative)])
    if not ratios:
        return (
            ["no atom has a neighbor within 6 angstrom: positions may be in a smaller unit than stated"]
            if bonded
            else []
        )
    typical = float(np.median(np.concatenate(ratios))) if any(map(len, ratios)) else 1.0
    if not 0.6 < typical < 1.6:
        cause = _nearest_cause(typical, _LENGTH_CAUSES, 0.25) or "they are in another unit"
        return [f"atoms lie {typical:.3g} covalent bond lengths apart, usual is 1: {cause}"]
    if nearest < 0.4:
        return [f"two atoms lie {nearest:.3f} angstrom apart: a broken structure, or positions in another unit"]
    return []


def _nearest_cause(ratio: float, causes: dict[float, str], tolerance: float) -> str | None:
    """Return the cause whose factor is nearest to ``ratio`` on a logarithmic scale, if one is near enough."""
    if ratio <= 0:
        return None
    nearest = min(causes, key=lambda factor: abs(np.log(ratio / factor)))
    return causes[nearest] if abs(np.log(ratio / nearest)) < tolerance else None


def _all_electron(number: int) -> float:
    """Return a rough total energy of an atom, eV (Thomas-Fermi's power law fitted to H to Ar)."""
    return -0.5 * HARTREE * number**2.4
