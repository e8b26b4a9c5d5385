"""Units. Inside simkit everything is in eV, angstrom, fs, amu, K and elementary charges; conversion happens once, at the border.

Values are CODATA 2018. A unit is named by a string such as ``"kcal/mol/angstrom"``: a product of known names with ``/``, ``*`` and ``^``.
"""

import re

from simkit.errors import ConfigError

HARTREE = 27.211386245988
"""Hartree in eV."""
BOHR = 0.529177210903
"""Bohr radius in angstrom."""
KCAL_PER_MOL = 4184.0 / 6.02214076e23 / 1.602176634e-19
"""kcal/mol in eV (thermochemical calorie)."""
KJ_PER_MOL = KCAL_PER_MOL / 4.184
"""kJ/mol in eV."""
DEBYE = 1e-21 / 299792458.0 / 1.602176634e-19 * 1e10
"""Debye in e*angstrom."""
BOLTZMANN = 8.617333262e-5
"""Boltzmann's constant in eV/K."""
GPA = 1.0 / 160.21766208
"""Gigapascal in eV/angstrom^3."""
FORCE_TO_ACCELERATION = 1.602176634e-19 / 1.66053906660e-27 * 1e-10
"""eV/angstrom/amu in angstrom/fs^2."""

UNITS: dict[str, float] = {
    "1": 1.0,
    "e": 1.0,
    "me": 1e-3,  # of an elementary charge
    "mu_b": 1.0,  # Bohr magneton
    "ev": 1.0,
    "mev": 1e-3,
    "hartree": HARTREE,
    "ha": HARTREE,
    "rydberg": HARTREE / 2,
    "kcal": KCAL_PER_MOL,  # per mole: "kcal/mol" is "kcal" over "mol" = 1
    "cal": KCAL_PER_MOL / 1000,
    "kj": KJ_PER_MOL,
    "mol": 1.0,
    "angstrom": 1.0,
    "ang": 1.0,
    "a": 1.0,
    "bohr": BOHR,
    "nm": 10.0,
    "fs": 1.0,
    "ps": 1000.0,
    "amu": 1.0,
    "k": 1.0,
    "debye": DEBYE,
    "d": DEBYE,
    "gpa": GPA,
    "kbar": GPA / 10,
    "bar": GPA / 1e4,
}


def unit_factor(unit: str) -> float:
    """Return the factor that converts a value in ``unit`` to simkit's internal units.

    >>> round(unit_factor("kcal/mol/angstrom"), 6)
    0.043364

    Raises:
        ConfigError: if a part of the unit is not known.
    """
    text = unit.replace(" ", "")
    part = r"[^*/^]+(?:\^\d+)?"
    if not re.fullmatch(rf"{part}(?:[*/]{part})*", text):
        raise ConfigError(f"cannot read the unit {unit!r}; write it like 'kcal/mol/angstrom' or 'eV/angstrom^3'")
    factor = 1.0
    for sign, name, power in re.findall(r"([*/]?)([^*/^]+)(?:\^(\d+))?", text):
        key = name.lower()
        if key not in UNITS:
            raise ConfigError(f"unknown unit {name!r} in {unit!r}; known units: {', '.join(sorted(UNITS))}")
        value = UNITS[key] ** int(power or 1)
        factor = factor / value if sign == "/" else factor * value
    return factor


def unit_text(unit: str) -> str:
    """Return a unit as it is printed: ``"meV/angstrom^3"`` as ``"meV/Å³"``, ``"debye"`` as ``"D"``."""
    for name, sign in (("angstrom", "Å"), ("debye", "D"), ("mu_B", "μB"), ("*", "·"), ("^2", "²"), ("^3", "³")):
        unit = unit.replace(name, sign)
    return unit
