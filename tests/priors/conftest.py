"""Tiny priors, written once a session and loaded once a test."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ldd.priors import LatentDiffusionPrior


@pytest.fixture(scope="session")
def kl_folder(tmp_path_factory, tiny_prior_folder) -> Path:
    return tiny_prior_folder(tmp_path_factory.mktemp("priors") / "kl")


@pytest.fixture(scope="session")
def vq_folder(tmp_path_factory, tiny_prior_folder) -> Path:
    return tiny_prior_folder(tmp_path_factory.mktemp("priors") / "vq", vq=True)


@pytest.fixture
def load(kl_folder, vq_folder) -> Callable[..., LatentDiffusionPrior]:
    """`load(vq=False, **arguments)` -> a prior over one of the two folders."""
    return lambda vq=False, **arguments: LatentDiffusionPrior(
        str(vq_folder if vq else kl_folder), **arguments
    )
