"""A prior's identity follows from its frozen weights alone."""

import pytest
import torch
from torch import nn

from ldd.artefact.identity import identify
from ldd.priors import LatentDiffusionPrior, PixelPrior


def test_pixels_have_no_weights():
    facts = identify(PixelPrior(16))
    assert (facts["class_path"], facts["floats"], facts["bytes"]) == ("ldd.priors.pixel.PixelPrior", 0, 0)
    assert facts["image_size"] == 16


def test_equal_weights_are_equal(tiny_prior_path, tiny_prior_folder, tmp_path):
    prior = LatentDiffusionPrior(str(tiny_prior_path))
    facts = identify(prior)
    tensors = [*prior.parameters(), *prior.buffers()]
    assert facts["bytes"] == sum(tensor.nbytes for tensor in tensors)
    assert facts["floats"] == sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
    copied = tiny_prior_folder(tmp_path / "elsewhere")
    assert identify(LatentDiffusionPrior(str(copied))) == facts
    with torch.no_grad():
        next(prior.parameters()).flatten()[0] += 1e-3
    assert identify(prior)["sha256"] != facts["sha256"]


def test_trained_weights_are_no_part(monkeypatch, tiny_prior_path):
    prior = LatentDiffusionPrior(str(tiny_prior_path))
    before, first = identify(prior), next(prior.parameters())
    monkeypatch.setattr(LatentDiffusionPrior, "trainable", lambda self: (first,))
    after = identify(prior)
    assert before["floats"] - after["floats"] == first.numel()
    with torch.no_grad():
        first.add_(1)
    assert identify(prior) == after


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precision_counts(dtype, tiny_prior_path):
    """Half as many bytes for the parameters, and another digest."""
    prior = LatentDiffusionPrior(str(tiny_prior_path))
    whole = identify(prior)
    assert isinstance(prior, nn.Module)
    half = identify(prior.to(dtype))
    assert half["floats"] == whole["floats"]
    assert half["bytes"] < whole["bytes"]
    assert half["sha256"] != whole["sha256"]
