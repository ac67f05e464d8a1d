"""The tiny prior over three classes."""

import pytest
from small_world import CLASSES

from ldd.priors import LatentDiffusionPrior


@pytest.fixture
def prior(tiny_prior_path) -> LatentDiffusionPrior:
    rows = {info.wnid: 2 + info.label for info in CLASSES}
    return LatentDiffusionPrior(str(tiny_prior_path), num_steps=0, classes=rows).double()
