"""Is a posterior to be trusted? What is reported with every posterior.

- `calibrate`: all of what follows, within a given time, as a `Calibration` that says it in plain words;
- `simkit.inference.calibration.ranks`: simulation-based calibration and expected coverage, by `simkit.inference.calibration.uniformity`;
- `simkit.inference.calibration.outliers`: does the observation belong to what was simulated, under the prior and under the posterior.
"""

from simkit.inference.calibration.report import Calibration
from simkit.inference.calibration.run import calibrate

__all__ = ["Calibration", "calibrate"]
