"""Models of first order, whose state is q alone, and convolutions on periodic grids."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from simkit.errors import ConfigError, DataError
from simkit.surrogates import systems
from simkit.surrogates.compiled.model import compile_model
from simkit.surrogates.evaluation import evaluate
from simkit.surrogates.models import build
from simkit.surrogates.models.convolution import ConvolutionOptions, PeriodicConvolution
from simkit.surrogates.objectives import MotionObjective, ObjectiveOptions, Trainee
from simkit.surrogates.samples import pieces, single_states
from simkit.training.fit import fit
from simkit.training.options import TrainingOptions

F64 = torch.float64


def test_the_state_is_q_alone() -> None:
    data = systems.build_any("lotka_volterra").generate(seed=1)
    np.testing.assert_array_equal(data.state("q"), data.q)
    assert data.dq is not None
    np.testing.assert_array_equal(data.derivative("q"), data.dq)
    with pytest.raises(DataError, match='"q", "qp" or "qv"'):
        data.state("pq")
    with pytest.raises(DataError, match="no p"):
        data.state("qp")
    whole = pieces(data.windows(3), "first-order", F64)
    assert torch.equal(whole.states[1, 2], torch.from_numpy(data.q[0, 5]))
    samples = single_states(data, "first-order", F64)
    assert samples.derivatives is not None
    assert torch.equal(samples.derivatives[7, 0], torch.from_numpy(data.dq[0, 7]))


def test_lotka_volterra_is_learned(tmp_path: Path) -> None:
    """The populations of the test part stay within 3% over a period, which before training they do not."""
    data = systems.build_any("lotka_volterra").generate(seed=0).split({"train": 50, "test": 50})
    model = build("neural-ode", 2, coordinates="first-order", width=32, seed=1)
    before = evaluate(model, data["test"].between(0, 41)).figures
    samples = single_states(data["train"], "first-order", torch.float32)
    options = TrainingOptions(
        epochs=12, batch_size=50, learning_rate=1e-2, ema_decay=0.0, warmup_steps=0, validate_every=12
    )
    fit(Trainee(model), MotionObjective(ObjectiveOptions()), samples, None, options, tmp_path)
    after = evaluate(model, data["test"].between(0, 41)).figures
    with torch.no_grad():
        q = torch.from_numpy(data["test"].between(0, 41).q).float()
        error = model.derivative(0.0, q).double() - torch.from_numpy(data["test"].between(0, 41).derivative("q"))
    assert after["derivative_mse"] == pytest.approx(float(error.square().mean()), rel=1e-5)
    assert after["derivative_mse"] < 0.01 * before["derivative_mse"]
    assert after["relative_error"]["median"] < 0.03 < 0.2 < before["relative_error"]["median"]


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_convolutions_are_periodic(kernel: int) -> None:
    options = ConvolutionOptions(width=3, layers=1, kernel=kernel)
    network = PeriodicConvolution(2, 32, options).double()
    fields = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = network(fields.flatten(1)).view(5, 2, 4, 4).detach()
    shifted = network(fields.roll((1, 2), (-2, -1)).flatten(1)).view(5, 2, 4, 4).detach()
    torch.testing.assert_close(shifted, found.roll((1, 2), (-2, -1)))
    first, last = network.layers[0], network.layers[2]
    reach = kernel // 2

    def convolved(x: np.ndarray, layer: torch.nn.Module, o: int, i: int, j: int) -> float:
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()  # type: ignore[union-attr, operator]
        total = float(bias[o])
        for c, a, b in np.ndindex(weight.shape[1:]):
            total += weight[o, c, a, b] * x[c, (i + a - reach) % 4, (j + b - reach) % 4]
        return total

    x = fields[0].numpy()
    hidden = np.array(
        [[[math.tanh(convolved(x, first, o, i, j)) for j in range(4)] for i in range(4)] for o in range(3)]
    )
    for o, i, j in np.ndindex(2, 4, 4):
        assert float(found[0, o, i, j]) == pytest.approx(convolved(hidden, last, o, i, j), rel=1e-10)


def test_what_models_of_first_order_refuse() -> None:
    model = build("neural-ode", 3, coordinates="first-order")
    assert model.state_size == 3
    with pytest.raises(ConfigError, match=r"must be coordinates \[\.\.\., 3\]"):
        model.derivative(0.0, torch.zeros(6))
    with pytest.raises(ConfigError, match="no second half"):
        compile_model(model)
    with pytest.raises(ConfigError, match="coordinates=first-order"):
        build("neural-ode", 8, fields=2)
