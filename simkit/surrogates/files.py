"""Models of motion as files: one safetensors file whose header holds what is needed to rebuild the model. No pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from simkit.errors import ModelFileError
from simkit.files import read_model_header, rebuild_model, write_model
from simkit.surrogates import models
from simkit.surrogates.models.base import DynamicsModel

FORMAT = "simkit-surrogate"
FORMAT_VERSION = 1


def save(model: DynamicsModel, path: str | os.PathLike[str]) -> None:
    """Write a model as one safetensors file, atomically; read it with `load`.

    Raises:
        ModelFileError: if a part of the model was replaced, so that `load` could not rebuild it.
        OutputError: if the file cannot be written.
    """
    description = model.describe()
    with_same_parts = models.build(model.name, model.dof, dtype=description["dtype"], **description["options"])
    expected, found = ({name: type(part) for name, part in one.named_modules()} for one in (with_same_parts, model))
    if expected != found:
        replaced = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ModelFileError(
            f"parts of this {model.name} were replaced ({', '.join(replaced)}), and a file could not rebuild them; save the "
            "weights of your own parts by yourself"
        )
    write_model(path, model.state_dict(), {"format": FORMAT, "version": FORMAT_VERSION, **description})


def load(path: str | os.PathLike[str], device: str = "cpu") -> DynamicsModel:
    """Load a model that `save` wrote, in evaluation mode. Nothing in the file is executed.

    Raises:
        ModelFileError: if the file is not a valid model or its weights do not fit its header.
    """
    header = read_model_header(path, FORMAT, FORMAT_VERSION, "surrogate")

    def build(header: Mapping[str, Any]) -> DynamicsModel:
        options = header["options"]
        return models.build(header["model"], header["dof"], dtype=header["dtype"], info=header["info"], **options)

    return rebuild_model(path, header, build, device)
