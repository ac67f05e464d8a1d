"""Fixtures shared by all test folders."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_prior import write_prior_folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Tiny networks are fastest, and most alike between machines, on one thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Plans remembered from earlier runs of this machine stay out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_prior_folder() -> Callable[..., Path]:
    """`tiny_prior_folder(path, vq=False, ...)` writes a prior folder of random weights, see `tiny_prior`."""
    return write_prior_folder


@pytest.fixture(scope="session")
def tiny_prior_path(tmp_path_factory) -> Path:
    """One such folder for the whole session."""
    return write_prior_folder(tmp_path_factory.mktemp("prior") / "tiny")


@pytest.fixture(scope="session")
def digits():
    """Digits at 32 px, set up once."""
    from ldd.data import DistillationData

    data = DistillationData()
    data.setup()
    return data
