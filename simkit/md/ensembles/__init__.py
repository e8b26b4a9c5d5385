"""The equations of motion that a simulation can follow: constant energy, temperature, or temperature and pressure.

| Name | Class | Constant | Random |
| --- | --- | --- | --- |
| nve | `NVE` | energy | no |
| langevin, nvt | `Langevin` | temperature | yes |
| nose-hoover | `NoseHooverChain` | temperature | no |
| bussi | `Bussi` | temperature | yes |
| scr, npt | `StochasticCell` | temperature, pressure | yes |
| mtk | `MartynaTobiasKlein` | temperature, pressure | no |
"""

from simkit.md.ensembles.bussi import Bussi
from simkit.md.ensembles.langevin import Langevin
from simkit.md.ensembles.martyna_tobias_klein import MartynaTobiasKlein
from simkit.md.ensembles.nose_hoover import NoseHooverChain
from simkit.md.ensembles.nve import NVE
from simkit.md.ensembles.options import ENSEMBLES, EnsembleOptions, ensemble_from_options
from simkit.md.ensembles.stochastic_cell import StochasticCell
from simkit.md.ensembles.targets import Ramp

__all__ = [
    "ENSEMBLES",
    "NVE",
    "Bussi",
    "EnsembleOptions",
    "Langevin",
    "MartynaTobiasKlein",
    "NoseHooverChain",
    "Ramp",
    "StochasticCell",
    "ensemble_from_options",
]
