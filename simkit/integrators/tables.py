"""The splitting integrators that are known by name.

Coefficients are those of the references; where one follows from the others (the sums, the symmetry), it is computed. That each scheme
has the order it states is tested in two ways, on the order conditions and on trajectories.
"""

from __future__ import annotations

from collections.abc import Sequence

from simkit.integrators.scheme import Operator, Scheme, Substep

_CUBE_ROOT = 2 ** (1 / 3)

_VERLET = "L. Verlet, Phys. Rev. 159, 98 (1967), doi:10.1103/PhysRev.159.98"
_SWOPE = "W. C. Swope et al., J. Chem. Phys. 76, 637 (1982), doi:10.1063/1.442716"
_TUCKERMAN = "M. Tuckerman, B. J. Berne, G. J. Martyna, J. Chem. Phys. 97, 1990 (1992), doi:10.1063/1.463137"
_RUTH = "R. D. Ruth, IEEE Trans. Nucl. Sci. 30, 2669 (1983), doi:10.1109/TNS.1983.4332919"
_FOREST_RUTH = "E. Forest, R. D. Ruth, Physica D 43, 105 (1990), doi:10.1016/0167-2789(90)90019-L"
_YOSHIDA = "H. Yoshida, Phys. Lett. A 150, 262 (1990), doi:10.1016/0375-9601(90)90092-3"
_SUZUKI = "M. Suzuki, Phys. Lett. A 146, 319 (1990), doi:10.1016/0375-9601(90)90962-N"
_MCLACHLAN_ATELA = "R. I. McLachlan, P. Atela, Nonlinearity 5, 541 (1992), doi:10.1088/0951-7715/5/2/011"
_OMELYAN_2002 = (
    "I. P. Omelyan, I. M. Mryglod, R. Folk, Comput. Phys. Commun. 146, 188 (2002), doi:10.1016/S0010-4655(02)00451-4"
)
_OMELYAN_2003 = (
    "I. P. Omelyan, I. M. Mryglod, R. Folk, Comput. Phys. Commun. 151, 272 (2003), doi:10.1016/S0010-4655(02)00754-3"
)
_BLANES_MOAN = "S. Blanes, P. C. Moan, J. Comput. Appl. Math. 142, 313 (2002), doi:10.1016/S0377-0427(01)00492-7"
_KAHAN_LI = "W. Kahan, R.-C. Li, Math. Comput. 66, 1089 (1997), doi:10.1090/S0025-5718-97-00873-9"
_LEIMKUHLER = "B. Leimkuhler, C. Matthews, Appl. Math. Res. Express 2013, 34 (2013), doi:10.1093/amrx/abs010"
_BUSSI = "G. Bussi, M. Parrinello, Phys. Rev. E 75, 056707 (2007), doi:10.1103/PhysRevE.75.056707"
_ZHANG = "Z. Zhang et al., J. Phys. Chem. A 123, 6056 (2019), doi:10.1021/acs.jpca.9b02771"


def _scheme(name: str, letters: str, coefficients: Sequence[float], order: int, reference: str) -> Scheme:
    substeps = tuple(Substep(Operator(letter), float(c)) for letter, c in zip(letters, coefficients, strict=True))
    return Scheme(name, substeps, order, substeps == substeps[::-1], reference)


def _palindrome(half: Sequence[float]) -> list[float]:
    """Coefficients from the first to the middle one, continued backwards."""
    return [*half, *half[-2::-1]]


def _composition(name: str, letters: str, weights: Sequence[float], order: int, reference: str) -> Scheme:
    """Verlet steps of the lengths ``weights``, one after the other.

    Args:
        letters: "BAB" for velocity Verlet, "ABA" for position Verlet.
        weights: of the steps before the middle one, which follows from their sum; the rest mirrors them.
    """
    steps = _palindrome([*weights, 1 - 2 * sum(weights)])
    coefficients = [steps[0] / 2]
    for this, following in zip(steps, [*steps[1:], 0.0], strict=True):
        coefficients += [this, (this + following) / 2]
    return _scheme(name, letters[0] + letters[1:] * len(steps), coefficients, order, reference)


def _langevin(letters: str, reference: str) -> Scheme:
    """A scheme of one force evaluation, named by its letters; an operator that occurs n times lasts h/n each time."""
    return _scheme(letters.lower(), letters, [1 / letters.count(letter) for letter in letters], 2, reference)


def _minimum_norm() -> Scheme:
    root = (2 * 326**0.5 + 36) ** (1 / 3)
    first = 1 / 2 - root / 12 + 1 / (6 * root)
    return _scheme("minimum-norm-2", "ABABA", _palindrome([first, 0.5, 1 - 2 * first]), 2, _OMELYAN_2003)


def _forest_ruth_like(name: str, letters: str, xi: float, lam: float, chi: float) -> Scheme:
    """The position (ABABABABA) or velocity (BABABABAB) extended Forest-Ruth-like scheme."""
    half = [xi, (1 - 2 * lam) / 2, chi, lam, 1 - 2 * (chi + xi)]
    return _scheme(name, letters, _palindrome(half), 4, _OMELYAN_2002)


def _blanes_moan() -> Scheme:
    b = [0.0792036964311957, 0.353172906049774, -0.0420650803577195]
    a = [0.209515106613362, -0.143851773179818]
    half = [b[0], a[0], b[1], a[1], b[2], 0.5 - sum(a), 1 - 2 * sum(b)]
    return _scheme("blanes-moan-4", "BABABABABABAB", _palindrome(half), 4, f"{_BLANES_MOAN}, table 2, S6")


_DETERMINISTIC = (
    _scheme("symplectic-euler", "BA", [1, 1], 1, f"{_RUTH}, the scheme of first order"),
    _scheme("velocity-verlet", "BAB", [0.5, 1, 0.5], 2, f"{_VERLET}; in this form {_SWOPE}"),
    _scheme("position-verlet", "ABA", [0.5, 1, 0.5], 2, _TUCKERMAN),
    _scheme(
        "mclachlan-atela-2",
        "BABA",
        [1 - 0.5**0.5, 0.5**0.5, 0.5**0.5, 1 - 0.5**0.5],
        2,
        f"{_MCLACHLAN_ATELA}, optimal scheme of two stages",
    ),
    _minimum_norm(),
    _scheme("ruth-3", "BABABA", [7 / 24, 2 / 3, 3 / 4, -2 / 3, -1 / 24, 1], 3, f"{_RUTH}, the scheme of third order"),
    _composition("forest-ruth", "ABA", [1 / (2 - _CUBE_ROOT)], 4, _FOREST_RUTH),
    _composition("yoshida-4", "BAB", [1 / (2 - _CUBE_ROOT)], 4, _YOSHIDA),
    _composition("suzuki-4", "BAB", [1 / (4 - 4 ** (1 / 3))] * 2, 4, _SUZUKI),
    _scheme(
        "mclachlan-atela-4",
        "BABABABA",
        [
            0.1344961992774310892, 0.5153528374311229364, -0.2248198030794208058, -0.085782019412973646,
            0.7563200005156682911, 0.4415830236164665242, 0.3340036032863214255, 0.1288461583653841854,
        ],
        4,
        f"{_MCLACHLAN_ATELA}, optimal scheme of four stages for quadratic kinetic energy",
    ),
    _forest_ruth_like("pefrl", "ABABABABA", 0.1786178958448091, -0.2123418310626054, -0.06626458266981849),
    _forest_ruth_like("vefrl", "BABABABAB", 0.1644986515575760, -0.02094333910398989, 1.235692651138917),
    _blanes_moan(),
    _composition(
        "yoshida-6",
        "BAB",
        [0.784513610477560, 0.235573213359357, -1.17767998417887],
        6,
        f"{_YOSHIDA}, table 1, solution A",
    ),
    _composition(
        "kahan-li-6",
        "BAB",
        [0.39216144400731413928, 0.33259913678935943860, -0.70624617255763935981, 0.082213596293550800230],
        6,
        f"{_KAHAN_LI}, s9odr6a",
    ),
    _composition(
        "yoshida-8",
        "BAB",
        [
            0.914844246229740, 0.253693336566229, -1.44485223686048, -0.158240635368243,
            1.93813913762276, -1.96061023297549, 0.102799849391985,
        ],
        8,
        f"{_YOSHIDA}, table 2, solution D",
    ),
    _composition(
        "kahan-li-8",
        "BAB",
        [
            0.13020248308889008088, 0.56116298177510838456, -0.38947496264484728641, 0.15884190655515560090,
            -0.39590389413323757734, 0.18453964097831570709, 0.25837438768632204729, 0.29501172360931029887,
        ],
        8,
        f"{_KAHAN_LI}, s17odr8a",
    ),
)  # fmt: skip

_STOCHASTIC = (
    _langevin("BAOAB", _LEIMKUHLER),
    _langevin("ABOBA", _LEIMKUHLER),
    _langevin("OBABO", f"{_BUSSI}; {_LEIMKUHLER}"),
    _langevin("OABAO", _LEIMKUHLER),
    _langevin("BAOA", f"{_ZHANG}, the middle scheme; BAOAB with its kicks joined"),
)

SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (*_DETERMINISTIC, *_STOCHASTIC)}
"""All schemes by name."""
