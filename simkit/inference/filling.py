"""Drawing until enough of what is drawn is acceptable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Draw = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]
"""Problems [R], the number still wanted of one, and the attempt from 0 -> values [R, N, D] and which are acceptable, [R, N]."""


def draw_until(draw: Draw, problems: int, count: int, dim: int, attempts: int) -> Tensor:
    """Return ``count`` acceptable values for each problem, [M, count, D] float64; all NaN for one that did not get as many.

    Args:
        attempts: times that values are drawn for the problems that still lack some.
    """
    found = torch.full((problems, count, dim), torch.nan, dtype=torch.float64)
    have = torch.zeros(problems, dtype=torch.int64)
    for attempt in range(attempts):
        rows = (have < count).nonzero().squeeze(-1)
        if not len(rows):
            break
        values, fits = draw(rows, count - int(have[rows].min()), attempt)
        place = have[rows].unsqueeze(1) + fits.cumsum(1) - 1
        kept = fits & (place < count)
        found[rows.unsqueeze(1).expand_as(place)[kept], place[kept]] = values[kept]
        have[rows] = (have[rows] + fits.sum(1)).clamp(max=count)
    found[have < count] = torch.nan
    return found
