"""Dynamics from images: rendering against known positions, the structure of the model, and a training."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from simkit.errors import ConfigError, DataError, ModelFileError
from simkit.surrogates import systems
from simkit.surrogates.images import files, pictures
from simkit.surrogates.images.energy import latent_hamiltonian
from simkit.surrogates.images.evaluation import centroids, film_errors, mean_image
from simkit.surrogates.images.model import HamiltonianGenerativeNetwork, build, latent_noise
from simkit.surrogates.images.objective import Constrained, GecoObjective
from simkit.surrogates.images.rendering import EDGE, SCENES, discs, render
from simkit.surrogates.images.sequences import ImageSequences, image_protocol
from simkit.surrogates.models.hamiltonian import HamiltonianNetworkOptions
from simkit.training.fit import fit
from simkit.training.options import TrainingOptions

SMALL: dict[str, Any] = {"size": 16, "width": 8, "latent": 4, "dof": 2, "context": 3}
TIMES = torch.arange(8, dtype=torch.float64) * 0.125


def make_films(name: str = "spring", train: int = 12, frames: int = 8, size: int = 16) -> ImageSequences:
    plan = image_protocol(train, 1, frames=frames)
    return render(systems.build(name).generate(plan, 3), size=size)


def small_model(form: str = "separable", seed: int = 0) -> HamiltonianGenerativeNetwork:
    return build(seed=seed, hamiltonian={"form": form, "width": 16, "activation": "softplus"}, **SMALL)


def random_state(count: int = 5) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1))


def test_a_disc_is_where_its_body_is() -> None:
    scene = SCENES["spring"]
    q = torch.linspace(-1, 1, 41, dtype=torch.float64).unsqueeze(-1)
    images = discs(scene.positions(q), scene, 32)
    pixel = 2 * scene.half_width / 32
    expected = torch.cat([q / pixel, torch.zeros_like(q)], dim=-1)
    # The edge is sampled once per pixel; the error of the center is far below a pixel.
    torch.testing.assert_close(centroids(images), expected, rtol=0, atol=0.01)
    area = images[:, 0].sum((-2, -1)) * pixel**2
    # A smooth edge that is symmetric about the radius r adds the variance of its width: pi (r^2 + EDGE^2 / 20) for this profile.
    exact = np.pi * (scene.radius**2 + (EDGE * pixel) ** 2 / 20)
    torch.testing.assert_close(area, torch.full_like(area, exact), rtol=0.01, atol=0)


def test_up_is_up_and_bodies_keep_their_colours() -> None:
    scene = dataclasses.replace(SCENES["two_body"], colours=((1.0, 0.0, 0.0), (0.0, 0.0, 1.0)))
    positions = torch.tensor([[1.0, 2.0], [-1.5, -0.5]], dtype=torch.float64)
    image = discs(positions, scene, 32)
    pixel = 2 * scene.half_width / 32
    for channel, (x, y) in ((0, (1.0, 2.0)), (2, (-1.5, -0.5))):
        found = centroids(image[channel : channel + 1])
        torch.testing.assert_close(found, torch.tensor([x, -y], dtype=torch.float64) / pixel, rtol=0, atol=0.01)
    assert float(image[1].max()) == 0.0
    assert image.min() >= 0
    assert image.max() <= 1


def test_discs_are_those_of_a_loop_over_pixels() -> None:
    scene, size = SCENES["two_body"], 12
    positions = torch.tensor([[0.3, 0.4], [0.1, -0.2]], dtype=torch.float64)
    expected = np.zeros((3, size, size))
    pixel = 2 * scene.half_width / size
    for row in range(size):
        for column in range(size):
            x, y = (column + 0.5) * pixel - scene.half_width, scene.half_width - (row + 0.5) * pixel
            dark = np.ones(3)
            for (bx, by), colour in zip(positions.tolist(), scene.colours, strict=True):
                d = min(max((scene.radius - np.hypot(x - bx, y - by)) / pixel / EDGE + 0.5, 0.0), 1.0)
                dark *= 1 - (3 * d**2 - 2 * d**3) * np.array(colour)
            expected[:, row, column] = 1 - dark
    np.testing.assert_allclose(discs(positions, scene, size).numpy(), expected, atol=1e-12)


def test_the_pendulums_hang() -> None:
    q = torch.tensor([[0.3, -1.1]], dtype=torch.float64)
    chain = systems.build("double_pendulum").embedding()
    assert chain is not None
    exact = chain.to_cartesian(q, torch.zeros_like(q))[0].unflatten(-1, (-1, 2))
    torch.testing.assert_close(SCENES["double_pendulum"].positions(q), exact)
    torch.testing.assert_close(SCENES["pendulum"].positions(q[:, :1])[0, 0], exact[0, 0])


@pytest.mark.parametrize("name", sorted(SCENES))
def test_rendered_trajectories(name: str) -> None:
    plan = image_protocol(3, 1, frames=6)
    data = systems.build(name).generate(plan, 0)
    films = render(data, size=16)
    assert films.pixels.shape == (4, 6, 3, 16, 16)
    assert films.info["system"] == name
    torch.testing.assert_close(films.times, torch.from_numpy(data.times))
    scene = SCENES[name]
    exact = discs(scene.positions(torch.from_numpy(data.q[2])), scene, 16)
    batch = films.batch(torch.tensor([2, 0]))
    torch.testing.assert_close(batch.images[0], exact.float(), rtol=0, atol=0.51 / 255)
    # Nothing leaves the picture: the light is as much as that of a disc in the middle, or more than most of it where discs overlap.
    light = batch.images.sum((2, 3, 4))
    assert float(light.min()) > 0.6 * float(light.max())
    assert [part.tolist() for part in films.batches(3)] == [[0, 1, 2], [3]]
    assert films.frames(2).pixels.shape[1] == 2


def test_render_refuses_what_it_cannot_draw() -> None:
    data = systems.build("spring").generate(image_protocol(1, 1, frames=3), 0)
    with pytest.raises(ConfigError, match="no scene for the system 'henon_heiles'"):
        render(systems.build("henon_heiles").generate(image_protocol(1, 1, frames=3), 0))
    with pytest.raises(DataError, match="with its parameters"):
        render(dataclasses.replace(data, info={**data.info, "parameters": {"mass": 2.0, "stiffness": 1.0}}))
    with pytest.raises(DataError, match="uint8"):
        ImageSequences(torch.zeros(1, 3, 3, 8, 8), torch.zeros(3, dtype=torch.float64))
    with pytest.raises(DataError, match="has 1 bodies"):
        discs(torch.zeros(2, 2), SCENES["spring"])


def test_shapes_and_what_each_part_sees() -> None:
    model, films = small_model(), make_films()
    images = films.batch(torch.arange(4)).images
    mean, log_variance = model.encode(images)
    assert mean.shape == log_variance.shape == (4, 4)
    changed = images.clone()
    changed[:, 3:] = 0  # beyond the context
    assert torch.equal(model.encode(changed)[0], mean)
    predicted, states = model.predict(images, films.times)
    assert predicted.shape == images.shape
    assert states.shape == (4, 8, 4)
    moved = states.clone()
    moved[..., 2:] += 1  # momenta
    assert torch.equal(model.decode(moved), model.decode(states))
    assert model.energy(states).shape == (4, 8)
    first, again, other = (model.sample(2, films.times, seed) for seed in (0, 0, 1))
    assert first.shape == (2, 8, 3, 16, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(DataError, match="at least 3 frames"):
        model.encode(images[:, :2])
    with pytest.raises(ConfigError, match="power of two"):
        build(size=24)


@pytest.mark.parametrize("form", ["separable", "mechanical", "general"])
def test_latent_motion_is_hamiltonian(form: str) -> None:
    """The energy's error falls with the square of the step, and the motion retraces itself."""
    model = small_model(form).double()
    state = random_state().double()
    times = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    drift = []
    for timestep in (0.1, 0.05, 0.025):
        with torch.no_grad():
            states = model.rollout(state, times, timestep=timestep)
            drift.append((model.energy(states) - model.energy(states[0])).abs().max())
            back = model.rollout(states[-1], times.flip(0), timestep=timestep)
        torch.testing.assert_close(back[-1], state, rtol=0, atol=1e-11)
    ratios = [float(drift[k] / drift[k + 1]) for k in range(2)]
    assert all(3.5 < ratio < 4.5 for ratio in ratios), ratios
    exact = model.rollout(state, times, method="rk4", timestep=0.002).detach()
    torch.testing.assert_close(states[-1], exact[-1], rtol=0, atol=2e-2)


def test_it_starts_as_oscillators() -> None:
    options = HamiltonianNetworkOptions(form="separable", width=8, activation="softplus")
    dynamics = latent_hamiltonian(3, options, 0.5, 2.0).double()
    for weight in dynamics.parameters():
        torch.nn.init.zeros_(weight)
    frequencies = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    q, p = random_state()[:3, :3].double(), random_state()[2:, 1:].double()
    state = torch.cat([q, p], dim=-1)
    torch.testing.assert_close(
        dynamics.derivative(0.0, state), torch.cat([frequencies * p, -frequencies * q], dim=-1), rtol=1e-6, atol=1e-6
    )
    general = latent_hamiltonian(3, options.model_copy(update={"form": "general"}), 0.5, 2.0).double()
    mechanical = latent_hamiltonian(3, options.model_copy(update={"form": "mechanical"}), 0.5, 2.0).double()
    for weight in [*general.parameters(), *mechanical.hamiltonian.get_submodule("potential").parameters()]:
        torch.nn.init.zeros_(weight)
    torch.testing.assert_close(general.derivative(0.0, state), dynamics.derivative(0.0, state))
    torch.testing.assert_close(mechanical.derivative(0.0, state)[:, 3:], -(frequencies**2) * q, rtol=1e-6, atol=1e-6)
    with pytest.raises(ConfigError, match="rising"):
        latent_hamiltonian(2, options, 2.0, 1.0)


def test_the_lagrangian_descends_in_the_weights_and_ascends_in_the_multiplier() -> None:
    films, model = make_films(), Constrained(small_model())
    objective = GecoObjective(tolerance=0.1)
    indices = torch.arange(4)
    batch, counts = films.batch(indices), objective.counts(films, indices)
    assert counts == {"pixel": 4 * 8 * 3 * 16 * 16}
    loss, sums = objective(model, batch, counts)
    loss.backward()
    assert all(bool(p.grad is not None and p.grad.isfinite().all()) for p in model.parameters())
    network, noise = model.model, latent_noise(4, indices, torch.tensor(0), 0)
    mean, log_variance = network.encode(batch.images)
    z = mean + (0.5 * log_variance).exp() * noise
    error = network.decode(network.rollout(network.initial_state(z), TIMES)).transpose(0, 1) - batch.images
    error = error.detach()
    constraint = float(error.square().mean() / 0.1**2 - 1)
    variance = log_variance.exp()
    gaussian = torch.distributions.Normal(mean, variance.sqrt())
    divergence = torch.distributions.kl_divergence(gaussian, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
    assert loss.item() == pytest.approx(divergence.item() + constraint, rel=1e-5)  # lambda is 1 at the start
    assert model.raw.grad is not None
    assert model.raw.grad.item() == pytest.approx(-constraint, rel=1e-5)
    assert sums["pixel"].item() == pytest.approx(float(error.abs().sum()), rel=1e-5)
    assert int(model.draws) == 1


def test_shards_add_up_and_validation_is_the_squared_error() -> None:
    films, objective = make_films(), GecoObjective(tolerance=0.1, stride=2)
    whole = torch.arange(6)
    counts = objective.counts(films, whole)
    losses, gradients = [], []
    for shards in ([whole], [whole[::2], whole[1::2]]):
        model = Constrained(small_model())
        total = torch.zeros((), dtype=torch.float64)
        for shard in shards:
            model.draws.zero_()  # each process draws the noise of the same step for its own films
            total = total + objective(model, films.batch(shard), counts)[0]
        total.backward()
        losses.append(total.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
    model.eval()
    with torch.no_grad():
        loss, _ = objective(model, films.batch(whole), counts)
        images = films.batch(whole).images
        states = model.model.rollout(model.model.initial_state(model.model.encode(images)[0]), films.times)
        error = model.model.decode(states.transpose(0, 1)) - images
    assert loss.item() == pytest.approx(float(error[:, ::2].square().mean()), rel=1e-5)
    with pytest.raises(ConfigError, match="must be positive"):
        GecoObjective(tolerance=0.0)


def test_noise_is_standard_normal_and_new_for_every_draw_and_film() -> None:
    index = torch.arange(500)
    draws = torch.stack([latent_noise(6, index, torch.tensor(k), 7) for k in range(4)])
    assert draws.shape == (4, 500, 6)
    values = draws.flatten().double()
    assert len(values.unique()) > 0.999 * len(values)
    bound = 5 / np.sqrt(len(values))
    assert abs(float(values.mean())) < bound
    assert abs(float(values.square().mean()) - 1) < bound * np.sqrt(2)
    # A film's noise does not depend on the others of its batch.
    assert torch.equal(latent_noise(6, index[100:103], torch.tensor(2), 7), draws[2, 100:103])


OPTIONS = TrainingOptions(
    epochs=25, batch_size=8, learning_rate=5e-3, warmup_steps=5, ema_decay=0.9, device="cpu", schedule="constant"
)


def test_training_learns_films(tmp_path: Path) -> None:
    films, valid = make_films(train=79), make_films(train=15)
    energy = {"form": "separable", "width": 16, "activation": "softplus"}
    model = Constrained(build(**SMALL | {"dof": 1, "width": 16}, hamiltonian=energy))
    result = fit(model, GecoObjective(0.05, stride=2), films, valid, OPTIONS, tmp_path)
    errors = film_errors(model.model, valid, mean_image(films))
    # Films of which only the start was seen: better than an image that stands still can be on average.
    assert float(errors.model.mean()) < 0.5 * float(errors.mean_image.mean())
    assert min(row["valid_loss"] for row in result.rows) < 0.3 * result.rows[0]["valid_loss"]
    assert int(model.draws) == 25 * 10


def test_training_resumes_bit_for_bit(tmp_path: Path) -> None:
    films, objective = make_films(train=15), GecoObjective(0.05, stride=2)
    options, part = (OPTIONS.model_copy(update={"epochs": epochs}) for epochs in (4, 2))
    result = fit(Constrained(small_model()), objective, films, films, options, tmp_path / "whole")
    other = Constrained(small_model())
    fit(other, objective, films, films, part, tmp_path / "parts")
    resumed = fit(other, objective, films, films, options, tmp_path / "parts", resume=True)
    assert int(other.draws) == 4 * 2
    for name, weight in result.last_weights.items():
        assert torch.equal(weight, resumed.last_weights[name]), name


def test_errors_and_baselines_are_those_of_the_frames() -> None:
    films, model = make_films(train=5), small_model()
    center = mean_image(films)
    exact = films.pixels.double().mean((0, 1)) / 255
    torch.testing.assert_close(center.double(), exact, rtol=1e-5, atol=1e-7)
    errors = film_errors(model, films, center, batch_size=4)
    images = films.batch(torch.arange(6)).images
    predicted, states = model.predict(images, films.times)
    for found, guess in (
        (errors.model, predicted),
        (errors.last_frame, images[:, 2:3].expand_as(images)),
        (errors.mean_image, center.expand_as(images)),
    ):
        expected = [float((images[:, t] - guess[:, t]).square().mean()) for t in range(8)]
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-9)
    assert float(errors.last_frame[2]) == 0.0
    energies = model.energy(states).double().detach().numpy()
    assert errors.energy_variation() == pytest.approx(
        np.sqrt(energies.var(axis=1).mean()) / energies[:, 0].std(), rel=1e-4
    )


def test_files(tmp_path: Path) -> None:
    model = build(seed=5, info={"system": "spring"}, hamiltonian={"form": "mechanical", "width": 8}, **SMALL)
    path = tmp_path / "model.safetensors"
    files.save(model, path)
    loaded = files.load(path)
    images = make_films().batch(torch.arange(3)).images
    for found, expected in zip(loaded.predict(images, TIMES), model.predict(images, TIMES), strict=True):
        assert torch.equal(found, expected)
    assert loaded.info == {"system": "spring"}
    assert loaded.options == model.options
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError):
        files.load(damaged)


def test_pictures(tmp_path: Path) -> None:
    films, model = make_films(), small_model()
    images = films.batch(torch.arange(2)).images
    predicted, states = model.predict(images, films.times)
    both = {"true": images[0], "predicted": predicted[0]}
    strip = pictures.film_strip(both, films.times, trained=0.5, most=4)
    assert [label.get_text() for label in strip.get_yticklabels()] == ["true", "predicted"]
    assert [label.get_text() for label in strip.get_xticklabels()] == ["0.0", "0.2", "0.6", "0.9"]
    sheet = np.asarray(strip.images[0].get_array())
    np.testing.assert_allclose(sheet[:16, :16], images[0, 0].movedim(0, -1).numpy(), atol=1e-6)
    errors = film_errors(model, films, mean_image(films))
    course = pictures.error_course(films.times, errors.model, errors.last_frame, errors.mean_image, trained=0.5)
    energy = pictures.energy_course(films.times, errors.energies, trained=0.5)
    for ax in (course, energy):
        assert isinstance(ax, Axes)
        assert ax.get_xlabel()
        assert ax.get_ylabel()
    np.testing.assert_allclose(np.asarray(energy.lines[0].get_ydata()), model.energy(states)[0].detach(), rtol=1e-5)
    pictures.write_film(tmp_path / "film.gif", both, films.times)
    with Image.open(tmp_path / "film.gif") as gif:
        assert gif.n_frames == 8  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="ends in .gif"):
        pictures.write_film(tmp_path / "film.png", both, films.times)
    with pytest.raises(DataError, match="films must all be"):
        pictures.film_strip({"true": images[0], "short": images[0, :3]}, films.times, trained=0.5)
