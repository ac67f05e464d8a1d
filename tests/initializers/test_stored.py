"""Codes continued from an artefact: the same ones, bit for bit, or a refusal."""

import pytest
import torch

from ldd.artefact.identity import identify
from ldd.artefact.set import DistilledSet
from ldd.codes import GaussianCodes, PointCodes
from ldd.data import DistillationData
from ldd.errors import UserError
from ldd.federation import merge
from ldd.initializers import StoredCodes
from ldd.priors import DeconvolutionPrior, PixelPrior
from ldd.runtime.seeding import generator, seeded


def decoder(seed):
    with seeded(seed, "a decoder"):
        return DeconvolutionPrior("small", 32, width=8, latent_width=4)


def codes_of(prior, num_classes, seed=None, kind=GaussianCodes, each=2):
    """Two codes a class; with a seed all numbers random, without it zeros."""
    labels = torch.arange(num_classes).repeat_interleave(each)
    codes = kind(
        labels,
        torch.zeros(len(labels), *prior.latent_shape),
        torch.zeros(len(labels), 0, 0),
        torch.empty(len(labels), 0),
    )
    for parameter in codes.parameters() if seed is not None else ():
        parameter.data.normal_(generator=generator(seed, parameter.ndim)).clamp_(-2, 2)
    return codes


def data_of(*classes):
    data = DistillationData(subset=list(classes))
    data.setup()
    return data


def stored(data, codes, prior, **changes):
    spec = data.spec
    images = torch.zeros(len(codes), 3, 32, 32, dtype=torch.uint8)
    return DistilledSet.from_images(
        images,
        codes.labels,
        spec.classes,
        mean=spec.mean,
        std=spec.std,
        codes=codes.tensors(),
        decoder=prior.trained() or None,
        prior=identify(prior),
        **changes,
    )


@pytest.fixture(scope="module")
def data():
    return data_of("0", "1", "2")


def start(path, data, prior, codes):
    StoredCodes(str(path))(codes, prior, data.core_set, generator(0))


def test_codes_and_decoder_are_those_of_the_set(data, tmp_path):
    made, before = decoder(1), codes_of(decoder(1), 3, seed=5)
    stored(data, before, made).save(tmp_path / "set")
    prior, codes = decoder(2), codes_of(made, 3)
    start(tmp_path / "set", data, prior, codes)
    for one, other in ((before, codes), (made, prior)):
        state = one.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    assert all(parameter.requires_grad for parameter in codes.groups()["latents"])


def test_subtasks_go_on_together(data, tmp_path):
    """Merged codes in front of a frozen prior, rows of the second sub-task's class between those of the first."""
    prior, blocks = PixelPrior(32), (("0", "2"), ("1",))
    parts = [
        stored(data_of(*block), codes_of(prior, len(block), seed, PointCodes), prior)
        for seed, block in enumerate(blocks)
    ]
    merged = merge(parts, data.classes)
    merged.save(tmp_path / "set")
    codes = codes_of(prior, 3, kind=PointCodes)
    start(tmp_path / "set", data, prior, codes)
    assert torch.equal(codes.latents[2:4], parts[1].codes["latents"])
    assert torch.equal(codes.latents[[0, 1, 4, 5]], parts[0].codes["latents"])


def test_some_classes_of_a_set(data, tmp_path):
    """A sub-task takes the codes of its own classes, in its own order, and the decoder that all share."""
    prior, before = decoder(1), codes_of(decoder(1), 3, seed=5)
    stored(data, before, prior).save(tmp_path / "set")
    starts = {}
    for block in (("2", "0"), ("1",)):
        own, codes = decoder(2), codes_of(prior, len(block))
        start(tmp_path / "set", data_of(*block), own, codes)
        assert all(torch.equal(value, own.state_dict()[name]) for name, value in prior.state_dict().items())
        starts[block] = stored(data_of(*block), codes, own)
    assert torch.equal(starts["2", "0"].codes["latents"], before.latents[[4, 5, 0, 1]].detach())
    merge(list(starts.values()), data.classes).save(tmp_path / "merged")
    assert DistilledSet.load(tmp_path / "merged").decoder.keys() == prior.trained().keys(), "stored once"
    again, codes = decoder(3), codes_of(prior, 3)
    start(tmp_path / "merged", data, again, codes)
    assert torch.equal(codes.log_variance, before.log_variance)


def test_refusals(data, tmp_path):
    prior = decoder(1)
    stored(data, codes_of(prior, 3, 5), prior).save(tmp_path / "set")
    wide = DeconvolutionPrior("small", 32, width=16, latent_width=4)
    for what, other, own, codes in (
        ("classes", data_of("0", "1", "3"), prior, codes_of(prior, 3)),
        ("codes per class", data, prior, codes_of(prior, 3, each=1)),
        ("codes", data, prior, codes_of(prior, 3, kind=PointCodes)),
        ("frozen weights of the prior", data, wide, codes_of(prior, 3)),
    ):
        if own is wide:
            own.register_buffer("frozen", torch.zeros(1))
        with pytest.raises(UserError, match=f"holds other {what} than this run has"):
            start(tmp_path / "set", other, own, codes)
        assert not codes.latents.any(), "nothing half-set"
    with pytest.raises(UserError, match="decoder: "):
        start(
            tmp_path / "set",
            data,
            DeconvolutionPrior("small", 32, width=16, latent_width=4),
            codes_of(prior, 3),
        )
    blocks = (("0", "2"), ("1",))
    parts = [
        stored(data_of(*block), codes_of(prior, len(block), 0), decoder(seed))
        for seed, block in enumerate(blocks)
    ]
    merge(parts, data.classes).save(tmp_path / "merged")
    with pytest.raises(UserError, match="a decoder of each sub-task"):
        start(tmp_path / "merged", data, prior, codes_of(prior, 3))
