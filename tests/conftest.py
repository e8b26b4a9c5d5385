"""What all tests share: environment, reference data, seeded random numbers, and what cannot run here."""

import os
from collections.abc import Iterator
from pathlib import Path

# Before torch, numba or matplotlib are imported by any test module.
os.environ["MPLBACKEND"] = "Agg"
# Commands that tests start must import the installed package, not the folder they are started in.
os.environ["PYTHONSAFEPATH"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the workers share the cores

import hypothesis
import numpy as np
import pytest

from simkit import files

hypothesis.settings.register_profile(
    "simkit", deadline=None, max_examples=40, derandomize="CI" in os.environ, print_blob=True
)
hypothesis.settings.load_profile("simkit")

NO_DATA = "needs the reference data: set SIMKIT_DATA_DIR to its folder"


def pytest_configure() -> None:
    folder = files.data_dir()
    if folder is not None and not folder.is_dir():
        raise pytest.UsageError(f"SIMKIT_DATA_DIR names {folder}, which is no folder; correct it or unset it")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if files.data_dir() is None:
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(pytest.mark.skip(reason=NO_DATA))
    needs_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if needs_gpu:
        import torch

        if not torch.cuda.is_available():
            for item in needs_gpu:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, none was found"))


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Point simkit's cache at a temporary folder, so that no test reads or writes the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIMKIT_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the reference data; the test is skipped where there is none."""
    folder = files.data_dir()
    if folder is None:
        pytest.skip(NO_DATA)
    return folder


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20260101)
