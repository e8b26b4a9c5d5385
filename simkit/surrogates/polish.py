"""Training to the end with L-BFGS, where all samples fit into one batch: small networks on data without noise.

J. Nocedal, Math. Comp. 35, 773 (1980); with the line search of strong Wolfe conditions in `torch.optim.LBFGS`. First-order methods such
as Adam need many thousands of steps for the last digits of what is a smooth problem without noise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from simkit.errors import SimkitError
from simkit.surrogates.objectives import MotionObjective, Trainee
from simkit.surrogates.samples import Samples

HISTORY = 50


def polish(trainee: Trainee, objective: MotionObjective, samples: Samples, iterations: int) -> float:
    """Minimise the objective over all samples at once, and return its last value.

    The weight of the fit of APHYNITY stays what it is, and there is no noise. Use float64: in single precision the line search ends early.

    Args:
        trainee: the model, whose weights change.
        objective: what was trained on.
        samples: all of them, on the device of the model.
        iterations: of L-BFGS; each evaluates the objective once or a few times.

    Raises:
        SimkitError: if the objective is not finite.
    """
    still = MotionObjective(objective.options.model_copy(update={"fit_growth": 0.0, "noise": 0.0}), objective.seed)
    counts = still.counts(samples, torch.arange(len(samples)))
    optimizer = torch.optim.LBFGS(
        [p for p in trainee.parameters() if p.requires_grad],
        max_iter=iterations,
        max_eval=2 * iterations,
        history_size=HISTORY,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )
    last = math.inf

    def closure() -> Tensor:
        nonlocal last
        optimizer.zero_grad()
        loss, _ = still(trainee, samples, counts)
        last = float(loss.detach())
        if not math.isfinite(last):
            raise SimkitError("the objective is no longer finite; train longer with fit() before polishing")
        loss.backward()
        return loss

    trainee.train()
    optimizer.step(closure)
    trainee.eval()
    return last
