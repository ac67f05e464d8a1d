"""A prior whose frozen networks are in bfloat16: what is cast, how often, and what stays in single precision."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from small_runs import NARROW, fit, matching
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldd.artefact.identity import identify
from ldd.artefact.set import DistilledSet
from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.objectives import DistributionMatching, GradientMatching
from ldd.priors import AutoencoderPrior, DeconvolutionPrior, LatentDiffusionPrior, NeckPrior, PixelPrior
from ldd.priors.base import in_own_type
from ldd.priors.denoisers.base import timestep_tensor
from ldd.runtime.seeding import generator


class Casts(TorchDispatchMode):
    """Counts casts between floating types by the type that they end in; keeps the storages of weights cast."""

    def __init__(self, weights=()):
        super().__init__()
        self.to, self.of_weights = Counter(), []
        self._weights = {weight.untyped_storage()._cdata for weight in weights}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        cast = func is torch.ops.aten._to_copy.default and args[0].is_floating_point()
        if cast and result.dtype != args[0].dtype:
            self.to[result.dtype] += 1
            if args[0].untyped_storage()._cdata in self._weights:
                self.of_weights.append(result)
        return result


def kept_for_casts(function, weights):
    """Casts of a forward pass, and bytes of cast weights that its graph keeps for backward."""
    saved = set()

    def pack(tensor):
        saved.add(tensor.untyped_storage()._cdata)
        return tensor

    casts = Casts(weights)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), casts:
        held = function()
    assert tree_leaves(held)[0].requires_grad
    return casts.to, sum(w.nbytes for w in casts.of_weights if w.untyped_storage()._cdata in saved)


def synthesis_of(path, digits, steps=3, **arguments):
    prior = LatentDiffusionPrior(str(path), num_steps=steps)
    model = Distiller(prior, matching(), digits.spec, **arguments)
    return prior, model


@pytest.mark.parametrize("autocast", [False, True])
def test_casts_of_a_chain(vq_folder, digits, autocast):
    """Per call of the network the latents and the timestep's embedding, and its answer back; conditions once."""
    prior, model = synthesis_of(vq_folder, digits, prior_precision="bfloat16")
    rows = torch.arange(4)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        casts, kept = kept_for_casts(lambda: model.synthesis(rows), prior.parameters())
    assert casts == {torch.bfloat16: 2 * 3 + 2 + 1, torch.float32: 3 + 1}
    assert kept == 0
    plain_prior, plain = synthesis_of(vq_folder, digits)
    with torch.autocast("cpu", torch.bfloat16):
        casts, kept = kept_for_casts(lambda: plain.synthesis(rows), plain_prior.parameters())
    assert casts[torch.bfloat16] > 3 * 50  # all weights, at every call
    assert kept > 0


def published_unet():
    """The U-Net of cin256-v2 (400.9 M parameters) as the converter configures it, on no device."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=64,
        in_channels=3,
        out_channels=3,
        block_out_channels=(192, 384, 576, 960),
        layers_per_block=2,
        cross_attention_dim=512,
        attention_head_dim=1,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        up_block_types=(*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
    ).requires_grad_(False)


@pytest.fixture
def default_type():
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("half", "casts", "megabytes"), [(False, 504, 759), (True, 2, 0)])
def test_casts_of_a_call_of_the_published_network(default_type, half, casts, megabytes):
    """Counted with fake tensors, of one image with guidance; 470 of the 504 are of weights."""
    with FakeTensorMode():
        default_type(torch.bfloat16 if half else torch.float32)
        network = published_unet()
        default_type(torch.float32)
        assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 400.9
        x = torch.zeros(2, 3, 32, 32, requires_grad=True)
        condition = torch.zeros(2, 1, 512, dtype=torch.bfloat16 if half else torch.float32)

        def call(x, condition):
            return network(x, timestep_tensor(501, x), encoder_hidden_states=condition).sample

        with torch.autocast("cpu", torch.bfloat16, enabled=not half, cache_enabled=False):
            found, kept = kept_for_casts(
                lambda: in_own_type(network, call, x, condition), network.parameters()
            )
    assert found[torch.bfloat16] == casts
    assert round(kept / 1e6) == megabytes


def test_quantisation_codes_and_the_trained_neck_stay_in_single_precision(vq_folder, digits):
    prior, model = synthesis_of(vq_folder, digits, prior_precision="bfloat16")
    latents = torch.randn(2, *prior.latent_shape, generator=generator(0))
    plain = LatentDiffusionPrior(str(vq_folder))
    assert torch.equal(prior.autoencoder.quantise(latents), plain.autoencoder.quantise(latents))
    assert torch.equal(prior.encode(torch.zeros(1, 3, 32, 32)), plain.encode(torch.zeros(1, 3, 32, 32)))
    assert all(value.dtype in (torch.float32, torch.int64) for value in model.codes.state_dict().values())
    assert prior.unet.dtype == prior.autoencoder.autoencoder.decoder.conv_in.weight.dtype == torch.bfloat16
    assert prior.denoiser.class_embedding.dtype == torch.float32
    assert torch.equal(prior.unet.conv_out.weight, plain.unet.conv_out.weight)
    neck = NeckPrior(str(vq_folder), width=8, latent_width=4)
    neck.to_bfloat16()
    assert {value.dtype for value in neck.trained().values()} == {torch.float32}
    images = neck.decode(torch.zeros(2, 4, 1, 1))
    assert images.dtype == torch.float32
    images.sum().backward()
    assert all(value.grad.dtype == torch.float32 for value in neck.trained().values())


def smooth_network(num_classes, image_size):
    """Gradients of ReLU jump where it turns, however small the error; those of SiLU tell of the prior alone."""
    network = NARROW(num_classes, image_size)
    for place, layer in enumerate(network.features):
        if isinstance(layer, torch.nn.ReLU):
            network.features[place] = torch.nn.SiLU()
    return network


@pytest.mark.parametrize("objective", [DistributionMatching, GradientMatching])
def test_gradients_are_within_two_per_cent_of_single_precision(digits, tmp_path, objective):
    """Of the first step through the digits prior, by the trainer."""
    gradients = []
    for precision in ("float32", "bfloat16"):
        prior = LatentDiffusionPrior("embedded:digits", num_steps=2)
        options = {"prior_precision": precision, "chunk_size": 10, "checkpointing": "never"}
        of_step = objective(real_batch=4, network=smooth_network)
        model = fit(prior, of_step, tmp_path / precision, 1, digits, **options)
        (optimizer,) = model._optimizers.values()
        gradients.append([state["momentum_buffer"] for state in optimizer.state.values()])
    errors = [(rough - exact).norm() / exact.norm() for exact, rough in zip(*gradients, strict=True)]
    assert all(0 < error < 0.02 for error in errors)


def test_the_set_belongs_to_the_prior_as_loaded(tiny_prior_path, digits, tmp_path):
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)
    expected = identify(prior)
    fit(prior, matching(), tmp_path / "run", 1, digits, prior_precision="bfloat16")
    assert identify(prior) == expected
    assert DistilledSet.load(tmp_path / "run" / "distilled").manifest["prior"] == expected


@pytest.mark.parametrize("prior", [PixelPrior(32), DeconvolutionPrior("small", 32, width=8)])
def test_priors_without_a_frozen_network_are_refused(digits, prior):
    with pytest.raises(UserError, match=r"prior_precision \(bfloat16\): \w+ has no frozen network to cast"):
        Distiller(prior, matching(), digits.spec, prior_precision="bfloat16")


def test_double_precision_is_refused(tiny_prior_path, digits, tmp_path):
    with pytest.raises(
        UserError, match=r"model\.prior_precision \(bfloat16\) contradicts trainer\.precision"
    ):
        fit(
            AutoencoderPrior(str(tiny_prior_path)), matching(), Path(tmp_path), 1, digits, precision="64-true",
            prior_precision="bfloat16",
        )  # fmt: skip
