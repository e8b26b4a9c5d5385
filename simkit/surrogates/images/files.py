"""Hamiltonian Generative Networks as files: one safetensors file each, whose header holds what is needed to rebuild it. No pickle."""

from __future__ import annotations

import os

from simkit.files import read_model_header, rebuild_model, write_model
from simkit.surrogates.images.model import HamiltonianGenerativeNetwork, build

FORMAT = "simkit-images"
FORMAT_VERSION = 1


def save(model: HamiltonianGenerativeNetwork, path: str | os.PathLike[str]) -> None:
    """Write a model as one safetensors file, atomically; read it with `load`.

    Raises:
        OutputError: if the file cannot be written.
    """
    write_model(path, model.state_dict(), {"format": FORMAT, "version": FORMAT_VERSION, **model.describe()})


def load(path: str | os.PathLike[str], device: str = "cpu") -> HamiltonianGenerativeNetwork:
    """Load a model that `save` wrote, in evaluation mode. Nothing in the file is executed.

    Raises:
        ModelFileError: if the file is not a valid model or its weights do not fit its header.
    """
    header = read_model_header(path, FORMAT, FORMAT_VERSION, "model of images")
    return rebuild_model(path, header, lambda header: build(info=header["info"], **header["options"]), device)
