"""Lennard-Jones energies and virials of a configuration published by NIST."""

import numpy as np
import pytest

from simkit.classical import ClassicalPotential, LennardJones

# Sample configuration 4 of the Lennard-Jones reference calculations of NIST's Standard Reference Simulation Website (30 atoms, a cubic
# cell with edges of 8): https://www.nist.gov/mml/csd/chemical-informatics-group/lennard-jones-fluid-reference-calculations-cuboid-cell
CONFIGURATION = """
    1.077169909511E+00      -1.020988125886E+00      -1.348259447733E+00
    1.830884592213E-01      -1.557698231574E+00      -1.782405485883E+00
   -2.060346185437E+00       3.927378276290E+00       3.889555115290E+00
    1.936298049102E+00       7.181973326223E-01       3.715169082037E+00
   -7.514139041700E-01      -4.184139469527E-01      -3.250183630687E+00
    2.257391305584E+00      -1.126577405146E+00      -2.291542913197E+00
    1.208868721243E-01      -1.395611520000E+00       2.003709382777E+00
    3.327427055092E+00      -1.476502868105E+00       3.394023898450E+00
    2.130927328546E+00      -1.106827632561E+00      -1.972896367169E-01
    2.117442019559E+00      -1.844743512029E-01       9.301638993772E-01
   -1.459378119580E+00       2.382882188329E+00      -3.788199401470E+00
    2.432313424884E+00      -1.118537915440E+00      -1.224088264651E+00
    2.416845366530E+00       1.845499053895E+00       2.906107003288E+00
    2.515247912050E+00       3.580976978134E-02      -2.445590080636E+00
    1.113585242376E+00      -2.478011342991E+00      -8.092189527960E-03
    1.261664073561E+00       1.075432348722E+00      -2.751715752259E+00
   -5.811873476022E-01      -2.429378395199E+00       2.668996832737E+00
   -1.533182296119E+00       2.319699660489E+00       1.762429379767E+00
    2.639946585704E+00      -7.847515599358E-01       2.251233247739E+00
   -1.927486378623E+00      -1.432729425739E+00      -2.439226375584E+00
    9.212801355440E-01      -2.427925517025E+00       2.150024430246E+00
    2.114172305774E+00       9.586575168591E-01      -1.790678078404E+00
   -7.312380271746E-01      -3.366157234697E+00       1.376597954432E-01
    1.612569300954E+00      -9.233415846164E-01       2.037484769332E+00
    3.967911812136E+00       2.002508998947E-01       2.659432175592E+00
    1.188751191387E+00      -5.955638413419E-02      -7.363070447875E-01
    3.789497702433E+00       1.570674334424E+00       7.265918374820E-01
    2.786625773109E+00      -1.524167484397E+00       8.358187540631E-01
   -1.629362446504E+00      -1.139061532617E+00      -7.654084051377E-01
    2.592655226763E+00       3.786335083587E+00      -1.252452130644E+00
"""


# Cutoff, form, and NIST's energy, virial and tail energy; five digits are published.
@pytest.mark.parametrize(
    ("cutoff", "form", "energy", "virial", "tail"),
    [
        (3.0, "cut", -1.6790e1, -4.6249e1, -5.4517e-1),
        (4.0, "cut", -1.7060e1, -4.7869e1, -2.3008e-1),
        (3.0, "force-shifted", -1.5001e1, -4.3096e1, 0.0),
    ],
)
def test_reference_configuration(cutoff: float, form: str, energy: float, virial: float, tail: float) -> None:
    x = np.array([[float(word) for word in line.split()] for line in CONFIGURATION.split("\n") if line])
    term = LennardJones(1.0, 1.0, cutoff, form)  # type: ignore[arg-type]
    found, tensor = ClassicalPotential([term], cell=np.eye(3) * 8.0).evaluate(x, np.empty_like(x))
    assert found == pytest.approx(energy, abs=0.6e-3)
    assert np.trace(tensor) == pytest.approx(virial, abs=0.6e-3)
    if tail:
        term = LennardJones(1.0, 1.0, cutoff, tail=True)
        with_tail, _ = ClassicalPotential([term], cell=np.eye(3) * 8.0).evaluate(x, np.empty_like(x))
        assert with_tail - found == pytest.approx(tail, abs=0.6e-5)
