"""Shapes of networks: what does not fit is named, and what is built is a plain diffusers model."""

import pytest
import torch
from diffusers import AutoencoderKL

from ldd.errors import UserError
from ldd.prior_training.architectures import AutoencoderShape, UNetShape


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            lambda: AutoencoderShape(channels=()),
            r"autoencoder\.channels=\[\] must hold a positive number per level",
        ),
        (
            lambda: AutoencoderShape(channels=(8, 12)),
            r"norm_groups=8 does not divide every entry of channels=\[8, 12\]",
        ),
        (
            lambda: UNetShape((16, 32), (True,)),
            r"attention=\[True\] must have one entry for each of unet\.channels",
        ),
        (lambda: UNetShape((16,), (False,), middle=False), "so the class cannot be told"),
        (
            lambda: UNetShape((16, 48), (True, False), heads=3),
            r"heads=3 does not divide the channels \[16, 48\]",
        ),
    ],
)
def test_impossible_shapes_are_refused(shape, message):
    with pytest.raises(UserError, match=message):
        shape()


def test_the_autoencoder_is_a_plain_diffusers_model():
    model = AutoencoderShape(channels=(8, 16, 24)).build(32)
    assert isinstance(model, AutoencoderKL)
    assert model.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mode().shape == (1, 4, 8, 8)
