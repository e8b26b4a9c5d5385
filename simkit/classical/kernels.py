"""Compiled sums over pairs: one pass over a half neighbor list, and all pairs of an open system.

Forces are gathered in one buffer per chunk of atoms and added up in the order of the chunks, which do not depend on the number of
threads: neither do the results, to the last bit.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numba import njit, prange

LENNARD_JONES, MORSE, COULOMB = 0, 1, 2
PLAIN, FORCE_SHIFTED, SWITCHED = 0, 1, 2
# Columns of the tables of parameters: three of the potential, then its value and slope at the cutoff as far as they are taken off.
SHIFT, SLOPE, COLUMNS = 3, 4, 5
BLOCK = 128  # pairs of an atom that are worked on together
ROW_X, ROW_Y, ROW_Z, ROW_R2, ROW_ENERGY, ROW_PULL, ROWS = 0, 1, 2, 3, 4, 5, 6
ONE, TWO, THREE, FOUR = np.uintp(1), np.uintp(2), np.uintp(3), np.uintp(4)
TWO_OVER_ROOT_PI = 2.0 / math.sqrt(math.pi)

# Indices are unsigned below: a signed one may be negative and count from the end.
_compile = functools.partial(njit, nogil=True, error_model="numpy", cache=True)


@_compile(inline="always")
def _pair(kind, form, r2, p0, p1, p2, shift, slope_off, inner, cutoff):  # type: ignore[no-untyped-def]  # pragma: no cover - compiled, as all below
    """Energy and -dE/dr / r of a pair at the squared distance r2."""
    if kind == 0:  # Lennard-Jones: c12, c6
        inverse = 1.0 / r2
        sixth = inverse * inverse * inverse
        energy = sixth * (p0 * sixth - p1)
        pull = inverse * sixth * (12.0 * p0 * sixth - 6.0 * p1)
        r = math.sqrt(r2) if form != 0 else 0.0
    elif kind == 1:  # Morse: depth, alpha, r0
        r = math.sqrt(r2)
        well = math.exp(-p1 * (r - p2))
        energy = p0 * well * (well - 2.0)
        pull = 2.0 * p1 * p0 * well * (well - 1.0) / r
    else:  # screened Coulomb: constant, alpha
        r = math.sqrt(r2)
        energy = p0 * math.erfc(p1 * r) / r
        pull = (energy + p0 * TWO_OVER_ROOT_PI * p1 * math.exp(-p1 * p1 * r2)) / r2
    energy -= shift
    if form == 1:
        energy -= slope_off * (r - cutoff)
        pull += slope_off / r
    elif form == 2 and r > inner:
        width = cutoff - inner
        x = (r - inner) / width
        weight = 1.0 - x * x * x * (10.0 - x * (15.0 - 6.0 * x))
        slope = -30.0 * x * x * (1.0 - x) * (1.0 - x) / width
        pull = weight * pull - slope * energy / r
        energy *= weight
    return energy, pull


@_compile
def _near(x, i, neighbors, begin, end, limit, d, who):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Gather the neighbors within the cutoff: vectors and squared distances as rows of d, slots in who; return their number.

    Each is written, and the next one over it where it is too far: there is no branch to be mispredicted.
    """
    xi, yi, zi = x[i, 0], x[i, 1], x[i, 2]
    n = np.uintp(0)
    for k in range(np.uintp(begin), np.uintp(end)):
        j = np.uintp(neighbors[k])
        dx, dy, dz = x[j, 0] - xi, x[j, 1] - yi, x[j, 2] - zi
        r2 = dx * dx + dy * dy + dz * dz
        d[ROW_X, n], d[ROW_Y, n], d[ROW_Z, n], d[ROW_R2, n], who[n] = dx, dy, dz, r2, j
        n += np.uintp(r2 < limit)
    return n


@_compile
def _plain_lennard_jones(n, c12, c6, shift, r2, energy, pull):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The first case of `_pair` for n pairs of one species, a loop of vector instructions."""
    for k in range(n):
        inverse = 1.0 / r2[k]
        sixth = inverse * inverse * inverse
        energy[k] = sixth * (c12 * sixth - c6) - shift
        pull[k] = inverse * sixth * (12.0 * c12 * sixth - 6.0 * c6)


@_compile
def _any_pair(  # type: ignore[no-untyped-def]  # pragma: no cover
    n, who, kind, form, inner, cutoff, table, row, species, charge, charges, r2, energy, pull
):
    for k in range(n):
        j = who[k]
        p = np.uintp((row + species[j]) * COLUMNS)
        e, g = _pair(
            kind,
            form,
            r2[k],
            table[p],
            table[p + ONE],
            table[p + TWO],
            table[p + THREE],
            table[p + FOUR],
            inner,
            cutoff,
        )
        if kind == 2:
            product = charge * charges[j]
            e, g = product * e, product * g
        energy[k], pull[k] = e, g


@_compile
def _chunk(  # type: ignore[no-untyped-def]  # pragma: no cover
    c,
    kind,
    form,
    inner,
    cutoff,
    table,
    species,
    charges,
    x,
    neighbors,
    first,
    split,
    last,
    lo,
    hi,
    buffer,
    sums,
    measure,
):
    """Forces of the pairs of one chunk into its buffer, whose row 0 is slot ``lo``; energy and virial into a row of sums."""
    limit, count = cutoff * cutoff, int(math.sqrt(len(table) // COLUMNS) + 0.5)
    d, who = np.empty((ROWS, BLOCK)), np.empty(BLOCK, dtype=np.uintp)
    r2, energies, pulls = d[ROW_R2], d[ROW_ENERGY], d[ROW_PULL]
    energy = xx = yy = zz = yz = xz = xy = 0.0
    for i in range(lo, hi):
        fx = fy = fz = 0.0
        row, charge = species[i] * count, charges[i] if kind == 2 else 0.0
        for part in range(2):
            begin, end = (first[i], split[i]) if part == 0 else (split[i], last[i])
            for at in range(begin, end, BLOCK):
                n = _near(x, i, neighbors, at, min(at + BLOCK, end), limit, d, who)
                if kind == 0 and form == 0 and count == 1:
                    _plain_lennard_jones(n, table[0], table[1], table[SHIFT], r2, energies, pulls)
                else:
                    _any_pair(
                        n, who, kind, form, inner, cutoff, table, row, species, charge, charges, r2, energies, pulls
                    )
                for k in range(n):
                    g = pulls[k]
                    gx, gy, gz = g * d[ROW_X, k], g * d[ROW_Y, k], g * d[ROW_Z, k]
                    fx -= gx
                    fy -= gy
                    fz -= gz
                    if part == 0:
                        own = who[k] - np.uintp(lo)
                        buffer[own, 0] += gx
                        buffer[own, 1] += gy
                        buffer[own, 2] += gz
                if measure:
                    share = 1.0 if part == 0 else 0.5  # a ghost's pair is counted by both of its atoms
                    for k in range(n):
                        dx, dy, dz = d[ROW_X, k], d[ROW_Y, k], d[ROW_Z, k]
                        g = share * pulls[k]
                        energy += share * energies[k]
                        xx += g * dx * dx
                        yy += g * dy * dy
                        zz += g * dz * dz
                        yz += g * dy * dz
                        xz += g * dx * dz
                        xy += g * dx * dy
        buffer[i - lo, 0] += fx
        buffer[i - lo, 1] += fy
        buffer[i - lo, 2] += fz
    sums[c, 0], sums[c, 1], sums[c, 2], sums[c, 3] = energy, xx, yy, zz
    sums[c, 4], sums[c, 5], sums[c, 6] = yz, xz, xy


@_compile
def pairs_serial(pair, arrays, lists, chunks, starts, buffers, sums, measure):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Run all chunks: ``starts`` says where the buffer of each begins."""
    for c in range(len(chunks) - 1):
        own = buffers[starts[c] : starts[c + 1]]
        _chunk(c, *pair, *arrays, *lists, chunks[c], chunks[c + 1], own, sums, measure)


@_compile(parallel=True)
def pairs_parallel(pair, arrays, lists, chunks, starts, buffers, sums, measure):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The same in parallel."""
    for c in prange(len(chunks) - 1):
        own = buffers[starts[c] : starts[c + 1]]
        _chunk(c, *pair, *arrays, *lists, chunks[c], chunks[c + 1], own, sums, measure)


@_compile
def add_up(chunks, starts, buffers, owner, forces):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Add the buffers to the forces, and clear them for the next time."""
    for c in range(len(chunks) - 1):
        for k in range(starts[c], starts[c + 1]):
            i = owner[chunks[c] + k - starts[c]]
            for d in range(3):
                forces[i, d] += buffers[k, d]
                buffers[k, d] = 0.0


@_compile
def _direct(i, constant, charges, x, bounds, partners, forces, sums):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Force on one atom by all others; half the energies and virials of its pairs."""
    fx = fy = fz = 0.0
    energy = xx = yy = zz = yz = xz = xy = 0.0
    for j in range(len(x)):
        if j == i:
            continue
        skip = False
        for k in range(bounds[i], bounds[i + 1]):
            skip = skip or partners[k] == j
        if skip:
            continue
        dx, dy, dz = x[j, 0] - x[i, 0], x[j, 1] - x[i, 1], x[j, 2] - x[i, 2]
        r2 = dx * dx + dy * dy + dz * dz
        e = constant * charges[i] * charges[j] / math.sqrt(r2)
        g = e / r2
        fx -= g * dx
        fy -= g * dy
        fz -= g * dz
        energy += e
        xx += g * dx * dx
        yy += g * dy * dy
        zz += g * dz * dz
        yz += g * dy * dz
        xz += g * dx * dz
        xy += g * dx * dy
    forces[i, 0] += fx
    forces[i, 1] += fy
    forces[i, 2] += fz
    sums[i, 0], sums[i, 1], sums[i, 2], sums[i, 3] = 0.5 * energy, 0.5 * xx, 0.5 * yy, 0.5 * zz
    sums[i, 4], sums[i, 5], sums[i, 6] = 0.5 * yz, 0.5 * xz, 0.5 * xy


@_compile
def direct_serial(constant, charges, x, bounds, partners, forces, sums):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Coulomb forces of all pairs, added to the forces."""
    for i in range(len(x)):
        _direct(i, constant, charges, x, bounds, partners, forces, sums)


@_compile(parallel=True)
def direct_parallel(constant, charges, x, bounds, partners, forces, sums):  # type: ignore[no-untyped-def]  # pragma: no cover
    """The same in parallel."""
    for i in prange(len(x)):
        _direct(i, constant, charges, x, bounds, partners, forces, sums)


@_compile
def bonds(pairs, stiffness, length, x, cell, inverse, forces, sums):  # type: ignore[no-untyped-def]  # pragma: no cover
    """Harmonic bonds to the nearest image, added to the forces; energy and virial are added to row 0 of sums."""
    for b in range(len(pairs)):
        i, j = pairs[b, 0], pairs[b, 1]
        d = x[j] - x[i]
        for k in range(3):
            along = d[0] * inverse[0, k] + d[1] * inverse[1, k] + d[2] * inverse[2, k]
            steps = math.floor(along + 0.5)
            for m in range(3):
                d[m] -= steps * cell[k, m]
        r = math.sqrt(d[0] * d[0] + d[1] * d[1] + d[2] * d[2])
        stretch = r - length[b]
        g = -stiffness[b] * stretch / r
        for m in range(3):
            forces[i, m] -= g * d[m]
            forces[j, m] += g * d[m]
        sums[0, 0] += 0.5 * stiffness[b] * stretch * stretch
        sums[0, 1] += g * d[0] * d[0]
        sums[0, 2] += g * d[1] * d[1]
        sums[0, 3] += g * d[2] * d[2]
        sums[0, 4] += g * d[1] * d[2]
        sums[0, 5] += g * d[0] * d[2]
        sums[0, 6] += g * d[0] * d[1]
