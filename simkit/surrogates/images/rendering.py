"""Images of mechanical systems: discs with soft edges on black, the bodies told apart by colour."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from simkit.config import nearest
from simkit.errors import ConfigError, DataError
from simkit.surrogates.images.sequences import ImageSequences
from simkit.surrogates.systems import build
from simkit.surrogates.trajectories import Trajectories

YELLOW, BLUE, RED = (1.0, 0.8, 0.1), (0.2, 0.5, 1.0), (1.0, 0.25, 0.2)
EDGE = 2.0
"""Pixels over which the brightness of a disc falls from full to none."""
_BLOCK = 4096  # frames rendered at once, which bounds the memory


@dataclass(frozen=True)
class Scene:
    """How a system is drawn.

    Attributes:
        positions: from coordinates q [..., D] to the bodies [..., bodies, 2]; y points up.
        half_width: half the side of the square that is seen; its center is the origin.
        radius: of the discs, in the same unit.
        colours: red, green and blue of each body, from 0 to 1.
    """

    positions: Callable[[Tensor], Tensor]
    half_width: float
    radius: float
    colours: tuple[tuple[float, float, float], ...]


def _on_a_line(q: Tensor) -> Tensor:
    return torch.stack([q, torch.zeros_like(q)], dim=-1)


def _hanging(q: Tensor) -> Tensor:
    """The ends of rods of unit length, each from the end of the one before; q are their angles from the vertical."""
    return torch.stack([q.sin(), -q.cos()], dim=-1).cumsum(-2)


def _in_a_plane(q: Tensor) -> Tensor:
    return q.unflatten(-1, (-1, 2))


SCENES: Mapping[str, Scene] = MappingProxyType(
    {
        "spring": Scene(_on_a_line, 1.5, 0.3, (YELLOW,)),
        "pendulum": Scene(_hanging, 1.5, 0.3, (YELLOW,)),
        "double_pendulum": Scene(_hanging, 2.5, 0.4, (YELLOW, BLUE)),
        "two_body": Scene(_in_a_plane, 3.0, 0.45, (YELLOW, BLUE)),
        "three_body": Scene(_in_a_plane, 3.0, 0.45, (YELLOW, BLUE, RED)),
    }
)
"""Registered system -> how it is drawn, for its default parameters."""


def discs(positions: Tensor, scene: Scene, size: int = 32) -> Tensor:
    """Return images [..., 3, size, size] of bodies at positions [..., bodies, 2], from 0 to 1, in the dtype of the positions.

    Where discs overlap their light is mixed as 1 - (1 - a)(1 - b), so that no disc hides another.
    """
    colours = torch.tensor(scene.colours, dtype=positions.dtype, device=positions.device)
    if positions.shape[-2:] != (len(colours), 2):
        raise DataError(f"this scene has {len(colours)} bodies [..., {len(colours)}, 2]; found {list(positions.shape)}")
    pixel = 2 * scene.half_width / size
    along = (torch.arange(size, dtype=positions.dtype, device=positions.device) + 0.5) * pixel - scene.half_width
    x, y = positions.unsqueeze(-1).unbind(-2)  # [..., bodies, 1] each
    distance = (
        torch.hypot((along - x).unsqueeze(-2), (-along - y).unsqueeze(-1)) / pixel
    )  # [..., bodies, rows, columns]
    depth = ((scene.radius / pixel - distance) / EDGE + 0.5).clamp(0, 1)
    coverage = depth * depth * (3 - 2 * depth)
    return 1 - (1 - coverage.unsqueeze(-3) * colours[:, :, None, None]).prod(dim=-4)


def render(data: Trajectories, *, size: int = 32) -> ImageSequences:
    """Return trajectories of a registered system as images of 8 bits per colour.

    Args:
        data: made by `simkit.surrogates.systems.System.generate`, with common times, canonical coordinates and default parameters.
        size: pixels along a side.

    Raises:
        ConfigError: if there is no scene for the system.
        DataError: if the trajectories are not such.
    """
    name = str(data.info.get("system", ""))
    if name not in SCENES:
        raise ConfigError(f"no scene for the system {name!r}{nearest(name, SCENES)}")
    system = build(name)
    same = data.info.get("parameters") == system.parameters and data.dof == system.dof
    if not same or data.times.ndim != 1:
        raise DataError(
            f"images are made of {name} with its parameters {system.parameters}, {system.dof} canonical coordinates and common times; "
            f"found {data.info.get('parameters')}, {data.dof} coordinates and times {data.times.shape}"
        )
    scene = SCENES[name]
    q = torch.from_numpy(data.q).float().flatten(0, 1)
    parts = [(discs(scene.positions(block), scene, size) * 255).round().to(torch.uint8) for block in q.split(_BLOCK)]
    pixels = torch.cat(parts).unflatten(0, data.q.shape[:2])
    return ImageSequences(pixels, torch.from_numpy(data.times), data.info)
