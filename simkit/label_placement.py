"""Where to write names beside points so that they overlap neither each other nor the points: plain geometry, no plotting."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Right and left first, then above and below, then the corners: the order in which a reader looks for a name.
DIRECTIONS = np.array(
    [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0.5), (1, -0.5), (-1, 0.5), (-1, -0.5)]
)
RINGS = (1.0, 2.0, 4.0, 7.0, 11.0)
MOST_PASSES = 30


def place_boxes(
    anchors: Array, sizes: Array, bounds: tuple[float, float, float, float], gap: float, lines: Array | None = None
) -> Array:
    """Return the centres [N, 2] of boxes, each near its anchor.

    Every box takes the best of its candidates, given the others, until nothing moves any more. The best candidate is inside the
    bounds, covers no anchor and no other box, and is as near to its own anchor as that allows.

    Args:
        anchors: the points [N, 2].
        sizes: width and height of every box [N, 2].
        bounds: left, bottom, right and top of where boxes may be.
        gap: wanted distance between an anchor and its box, and half of that between two boxes.
        lines: points [M, 2] of what boxes should rather not cover, but may where the alternative is far.
    """
    count = len(anchors)
    candidates = [_candidates(anchors[k], sizes[k], gap) for k in range(count)]
    lines = np.zeros((0, 2)) if lines is None else lines
    fixed = [_fixed_cost(c, sizes[k], anchors, lines, bounds, gap) for k, c in enumerate(candidates)]
    chosen = [int(cost.argmin()) for cost in fixed]
    for _ in range(MOST_PASSES):
        before = list(chosen)
        for k in range(count):
            cost = fixed[k].copy()
            for other in range(count):
                if other != k:
                    centre = candidates[other][chosen[other]]
                    cost += 100.0 * _overlap(candidates[k], sizes[k] + gap / 2, centre, sizes[other])
            chosen[k] = int(cost.argmin())
        if chosen == before:
            break
    return np.array([candidates[k][chosen[k]] for k in range(count)]).reshape(-1, 2)


def _candidates(anchor: Array, size: Array, gap: float) -> Array:
    """Centres of boxes around an anchor, ring by ring, [12 * rings, 2]."""
    rings = [anchor + DIRECTIONS * (size / 2 + ring * gap) for ring in RINGS]
    return np.concatenate(rings)


def _fixed_cost(
    centres: Array, size: Array, anchors: Array, lines: Array, bounds: tuple[float, float, float, float], gap: float
) -> Array:
    """What does not depend on the other boxes: distance, preference, covered anchors and lines, and parts outside the bounds."""
    order = np.array([10.0 * ring + k for ring, k in itertools.product(range(len(RINGS)), range(len(DIRECTIONS)))])
    covered = np.all(np.abs(centres[:, None] - anchors) < size / 2 + 0.6 * gap, axis=2).sum(axis=1)
    crossed = np.any(np.all(np.abs(centres[:, None] - lines) < size / 2, axis=2), axis=1)
    low, high = np.array(bounds[:2]), np.array(bounds[2:])
    outside = np.maximum(low - (centres - size / 2), 0) + np.maximum(centres + size / 2 - high, 0)
    return np.asarray(order + 8.0 * crossed + 1000.0 * covered + 1000.0 * outside.sum(axis=1))


def _overlap(centres: Array, size: Array, centre: Array, other: Array) -> Array:
    """How deep boxes of one size reach into another box: the smaller of both extents, 0 where they do not meet."""
    depth = (size + other) / 2 - np.abs(centres - centre)
    return np.asarray(np.maximum(depth, 0.0).min(axis=1))
