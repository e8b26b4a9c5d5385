"""Neural estimators of posteriors, likelihoods and ratios, from standardised outputs.

| Name | Learns | Loss | Source |
| --- | --- | --- | --- |
| npe | log q(z given x), a flow | -log q | Papamakarios & Murray, NeurIPS 2016; Greenberg et al., ICML 2019 |
| fmpe | a vector field whose flow carries noise to the posterior | squared error of the field | Wildberger et al., NeurIPS 2023 |
| nle | log q(x given z), a flow | -log q | Papamakarios et al., AISTATS 2019 |
| nre | log p(x given z) / p(x) up to a function of x, a classifier | contrastive cross-entropy | Durkan et al., ICML 2020 |

The networks are those of `sbi` (flows from zuko).
"""

from simkit.inference.direct import FlowMatching, PosteriorFlow
from simkit.inference.estimator import Estimator
from simkit.inference.likelihood import LikelihoodFlow, RatioClassifier

ESTIMATORS: dict[str, type[Estimator]] = {
    kind.name: kind for kind in (PosteriorFlow, FlowMatching, LikelihoodFlow, RatioClassifier)
}
