"""`Calibration`: what was found out about a posterior, as numbers and in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simkit.inference.calibration.outliers import OutlierTest, needed_simulations
from simkit.inference.calibration.predictive import PredictiveCheck
from simkit.inference.calibration.ranks import RankTest
from simkit.inference.priors import Array

FEWEST = 20
"""Simulated observations, below which passing the tests means nothing."""


@dataclass(frozen=True)
class Calibration:
    """What was found out about a posterior.

    Attributes:
        method: of inference.
        names, units: of the parameters.
        level: the probability of a false alarm of the ranks all together, of the predictive check and of the prior's, at most.
        wanted: simulated observations asked for; simulated: those that there was time for; failures: those of them that failed.
        drawn: those whose posterior there was time to draw from; used: those of them that gave finite samples, which are ranked.
        seconds: what it took.
        checkable: whether other observations could be used at all.
        confined: whether they were simulated in the region of a truncated proposal alone, and not under the whole prior.
        theta, x: the simulated observations, failures left out, [N, D] and [N, K].
        ranks: of all parameters, of the distance to random points and to similar simulations; none where nothing was used.
        predictive: None without an observation.
        prior_test: the observation among simulations under the prior; None without an observation or with too few simulations.
    """

    method: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    level: float
    wanted: int
    simulated: int
    failures: int
    drawn: int
    used: int
    seconds: float
    checkable: bool
    confined: bool
    theta: Array
    x: Array
    ranks: tuple[RankTest, ...]
    predictive: PredictiveCheck | None
    prior_test: OutlierTest | None

    @property
    def calibrated(self) -> bool | None:
        """Whether no rank test failed; None where there were none, or none failed among less than `FEWEST` cases."""
        if any(test.p_value <= self.level for test in self.ranks):
            return False
        return True if self.used >= FEWEST else None

    @property
    def misspecified(self) -> bool | None:
        """Whether the observation lies outside what was simulated under the prior; None where that is unknown."""
        return None if self.prior_test is None else self.prior_test.p_value <= self.level

    def verdicts(self) -> list[str]:
        """Return what it all means, one sentence or two each."""
        said = [self._counts(), *self._rank_verdicts()]
        if self.predictive is not None:
            said += [self._predictive_verdict(self.predictive), self._prior_verdict()]
        return said

    def _counts(self) -> str:
        text = f"{self.simulated} observations were simulated"
        if self.simulated < self.wanted:
            text += f", of {self.wanted} that were wanted: the time was up"
        if self.failures:
            share = _percent(self.failures / self.simulated)
            text += f"; {self.failures} of them failed ({share}) and are left out: what follows is about simulations that succeed"
        if self.checkable and self.drawn < len(self.x):
            text += f"; there was time to draw from the posteriors of {self.drawn}"
        if self.used < self.drawn:
            wrong = self.drawn - self.used
            text += f"; for {wrong} "
            if self.confined:
                text += "most of the posterior lay outside the region"
            else:
                text += "the posterior gave samples that are not finite, which is a fault of it"
        return f"{text} ({self.seconds:.1f} s)."

    def _rank_verdicts(self) -> list[str]:
        if not self.checkable:
            text = f"The {self.method} posterior was made for one observation, so that ranks and coverage over others cannot be computed; "
            return [text + "an amortised method (npe, fmpe, nle, nre) can be checked in this way."]
        if not self.ranks:
            return [
                "No simulated observation could be used, so that nothing is known about ranks and coverage; allow more time."
            ]
        if self.calibrated is None:
            return [
                f"{self.used} simulated observations are too few to say something about ranks and coverage; allow more time."
            ]
        failed = [test for test in self.ranks if test.p_value <= self.level]
        said = []
        for test in failed:
            of = test.name if test.kind == "parameter" else f"the {test.name}"
            text = f"The ranks of {of} are not uniform (p {_p(test.p_value)}): the posterior is {test.fault()}."
            if test.kind == "parameter":
                wide = test.coverage()[2]
                text += (
                    f" Its {_percent(wide.nominal)} intervals hold the truth in {_percent(wide.observed)} of {self.used} cases "
                    f"({_percent(wide.low)} to {_percent(wide.high)})."
                )
            said.append(text)
        if not failed:
            lowest = min(test.p_value for test in self.ranks)
            wide = min(
                (t.coverage()[2] for t in self.ranks if t.kind == "parameter"), key=lambda c: c.observed - c.nominal
            )
            said.append(
                f"Ranks and coverage agree with a right posterior in {self.used} cases (lowest of {len(self.ranks)} corrected p-values "
                f"{_p(lowest)}). The {_percent(wide.nominal)} intervals of each parameter hold the truth in at least "
                f"{_percent(wide.observed)} of them; that share is known to about {_percent((wide.high - wide.low) / 2)}."
            )
        return said

    def _predictive_verdict(self, check: PredictiveCheck) -> str:
        notes = []
        if check.failures:
            notes.append(f"{check.failures} of its {len(check.x) + check.failures} simulations failed")
        if check.outside:
            notes.append(f"{check.outside} of its parameters lay outside the prior")
        note = f" ({'; '.join(notes)})" if notes else ""
        if check.test is None:
            return (
                f"Only {len(check.x)} simulations with parameters from the posterior succeeded{note}; whether they agree with the "
                f"observation needs {needed_simulations(self.level)}."
            )
        head = f"{_percent(check.share_inside())} of the observed values lie within the 95 % bands of what the posterior predicts{note}"
        if check.test.p_value > self.level:
            return f"{head}, and the observation is not unusual among its simulations (p {_p(check.test.p_value)})."
        return (
            f"{head}, but the observation lies outside what the posterior predicts (p {_p(check.test.p_value)}): "
            f"{check.test.reasons(self.level)}."
        )

    def _prior_verdict(self) -> str:
        test = self.prior_test
        where = "in the region that its truncated prior leaves" if self.confined else "under the prior"
        if test is None:
            return (
                f"Whether the observation lies within what the simulator gives {where} is unknown: {len(self.x)} simulations "
                f"succeeded, and {needed_simulations(self.level)} are needed."
            )
        if test.p_value > self.level:
            return f"The observation lies within what the simulator gives {where} (p {_p(test.p_value)}, {test.count} simulations)."
        return (
            f"The observation lies outside what the simulator gives {where} (p {_p(test.p_value)}; {test.distance:.3g} times as "
            f"far out as 95 % of {test.count} simulations): {test.reasons(self.level)}. The posterior is an extrapolation: do not trust it."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for a JSON file; without the simulations."""
        names = (
            "method",
            "level",
            "wanted",
            "simulated",
            "failures",
            "drawn",
            "used",
            "seconds",
            "checkable",
            "confined",
        )
        result: dict[str, Any] = {"verdicts": self.verdicts()} | {name: getattr(self, name) for name in names}
        result |= {"calibrated": self.calibrated, "misspecified": self.misspecified}
        result |= {
            "parameters": dict(zip(self.names, self.units, strict=True)),
            "ranks": [test.to_dict() for test in self.ranks],
        }
        result["predictive"] = None if self.predictive is None else self.predictive.to_dict()
        return result | {"prior_test": None if self.prior_test is None else self.prior_test.to_dict()}


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"
