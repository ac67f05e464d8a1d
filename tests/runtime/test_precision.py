"""What half precision must not touch: the same bits with and without autocast, forwards and backwards."""

import pytest
import torch
from diffusers import VQModel
from tiny_prior import tiny_autoencoder

from ldd.augmentation.affine import AffineViews
from ldd.augmentation.siamese import OPERATIONS, SiameseAugmentation
from ldd.augmentation.views import light
from ldd.codes import GaussianCodes
from ldd.networks.training import train_classifier
from ldd.objectives import RBFMixture, Sinkhorn
from ldd.objectives.distribution import mean_distance
from ldd.objectives.gradient import row_cosine, squared_error, whole_cosine
from ldd.priors import AutoencoderPrior
from ldd.runtime.precision import multiplying, reduced_matmul, without_autocast
from ldd.runtime.seeding import generator, seeded


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


def siamese(name):
    augmentation = SiameseAugmentation(OPERATIONS if name == "all" else [name])
    draws = augmentation.draw(6, generator(1), one_strategy=name != "all")
    return lambda x: augmentation(x, draws)


def discrepancy(kind):
    real = normal(2, 5, 12, seed=3)
    return lambda x: kind(x.reshape(2, 4, -1)[..., :12], real).distance


def low_rank(x):
    codes = GaussianCodes(torch.arange(6), x.detach(), torch.zeros(6, 0, 0), torch.zeros(6, 0), rank=2)
    with torch.no_grad():
        codes.factors.copy_(normal(*codes.factors.shape, seed=2))
    return codes(torch.arange(6), generator(4)).latents + x


EXACT = {
    **{f"siamese {name}": siamese(name) for name in (*OPERATIONS, "all")},
    "affine views": lambda x: AffineViews(0.1, 20, 0.2, flip=True)(x, generator(3)),
    "light": lambda x: light(x.flatten(1)[:, :3].clone()),
    "rbf": discrepancy(RBFMixture()),
    "rbf absolute": discrepancy(RBFMixture((1.0, 4.0), "absolute", "none")),
    "sinkhorn": discrepancy(Sinkhorn()),
    "mean distance": lambda x: mean_distance(x.reshape(2, 3, -1), normal(2, 5, 192, seed=3)),
    "low rank": low_rank,
    **{
        distance.__name__: lambda x, distance=distance: distance([normal(8, 144)], [x.reshape(8, 144)], 1e-6)
        for distance in (row_cosine, squared_error, whole_cosine)
    },
}


@pytest.mark.parametrize("name", EXACT)
def test_single_precision_has_the_same_bits_under_autocast(name):
    """Values under autocast, gradients as `Distiller.training_step` takes them."""
    found = []
    for enabled in (False, True):
        x = normal(6, 3, 8, 8).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = EXACT[name](x)
            with without_autocast():
                (gradient,) = torch.autograd.grad(value.square().sum(), x)
        found.append((value, gradient))
    assert found[1][0].dtype == torch.float32
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_means_of_half_precision_features_are_taken_in_single_precision():
    """Class means 0.02 apart around 1, where bfloat16 has steps of 0.008: against float64 of the same features."""
    real, synthetic = ((1 + shift + 0.1 * normal(2, 64, 50, seed=shift > 0)) for shift in (0, 0.02))
    real, synthetic = real.bfloat16(), synthetic.bfloat16()
    exact = mean_distance(real.double(), synthetic.double())
    found = mean_distance(real, synthetic)
    assert found.dtype == torch.float32
    assert abs(found - exact) < 1e-5 * exact


@pytest.mark.parametrize("limit", [2**25, 64])
def test_nearest_codes_are_those_of_the_autoencoder_itself(tmp_path, monkeypatch, limit):
    """Straight-through, within autocast too, in one part or in many."""
    monkeypatch.setattr("ldd.priors.autoencoder._DISTANCES", limit)
    with seeded(0, "codebook"):
        tiny_autoencoder(VQModel).save_pretrained(tmp_path / "vqvae")
    prior = AutoencoderPrior(str(tmp_path))
    latents = normal(3, 4, 8, 8).requires_grad_()
    codes = prior.autoencoder.quantize(latents / prior.scale)[0] * prior.scale
    weight = normal(3, 4, 8, 8, seed=1)
    (expected,) = torch.autograd.grad((codes * weight).sum(), latents)
    with torch.autocast("cpu", torch.bfloat16):
        found = prior.quantise(latents)
        (gradient,) = torch.autograd.grad((found * weight).sum(), latents)
    assert torch.equal(found, codes)
    assert torch.equal(gradient, expected)
    decoded = prior.autoencoder.decode(latents / prior.scale).sample
    assert torch.equal(prior.decode(latents), decoded)


def test_without_autocast_ends_with_its_block():
    x = normal(2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with without_autocast():
            assert (x @ x).dtype == torch.float32
            assert without_autocast()(torch.bmm)(x, x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def test_training_under_autocast_sees_every_step_of_the_weights():
    """A plain `torch.autocast` keeps copies of the weights; the loss must fall as it does without."""
    losses = []
    for cached in (False, True):
        with seeded(0):
            network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
        images, labels = normal(30, 3, 8, 8), torch.arange(30) % 3
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            losses.append(
                train_classifier(
                    network, images, labels, epochs=20, batch_size=10,
                    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05),
                )
            )  # fmt: skip
    assert losses[0] < 0.3
    assert losses[1] == losses[0]


def test_precision_of_products_holds_for_a_block():
    """`auto` leaves a CPU as it is set, and takes TF32 on a GPU."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert reduced_matmul() is None
    for precision, device, expected in (
        ("auto", cpu, "highest"),
        ("auto", cuda, "high"),
        ("medium", cpu, "medium"),
        ("highest", cuda, "highest"),
    ):
        with multiplying(precision, device):
            assert torch.get_float32_matmul_precision() == expected
            assert reduced_matmul() == (None if expected == "highest" else expected)
        assert torch.get_float32_matmul_precision() == "highest"
    with multiplying("high", cpu), multiplying("auto", cpu):
        assert reduced_matmul() == "high"
