"""Spectral codes against loops over their parts, fitted to latents, stored, merged and distilled."""

import pytest
import torch
from small_runs import fit, matching
from tiny_set import classes_of, random_images

from ldd.artefact.set import DistilledSet
from ldd.codes import PARTS, SpectralCodes, stored_codes
from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.federation.merging import merge
from ldd.initializers import RealEncodings
from ldd.priors import LatentDiffusionPrior, PixelPrior
from ldd.runtime.seeding import generator

LABELS = torch.arange(3).repeat_interleave(6)


def spectral(**arguments):
    latents = torch.zeros(18, 2, 6, 8, dtype=torch.float64)
    empty = torch.empty(18, 0, dtype=torch.float64)
    codes = SpectralCodes(LABELS, latents, empty[:, :, None], empty, **{"tensors": 2, "size": 3} | arguments)
    with torch.no_grad():
        codes.small.copy_(torch.randn(codes.small.shape, generator=generator(1)))
    return codes


def test_each_tensor_meets_each_kernel():
    codes = spectral()
    found = codes(torch.arange(18))
    assert torch.equal(found.labels, LABELS)
    assert found.noise.shape == (18, 0)
    for row in range(18):
        k, i, j = row // 6, row % 6 // 3, row % 3
        grown = torch.stack([codes.left[k, j] @ plane @ codes.right[k, j].T for plane in codes.small[k, i]])
        wanted = sum(codes.mixing[k, j][:, d, None, None] * grown[d] for d in range(2))
        assert (found.latents[row] - wanted).abs().max() < 1e-12
    assert codes.tensors().keys() == PARTS
    some = torch.tensor([17, 3])
    assert torch.equal(codes(some).latents, found.latents[some])


def test_parts_are_fitted_to_latents_class_by_class():
    """Latents that are such products are found again but for a small rest; other classes stay as they are."""
    truth = spectral()
    with torch.no_grad():
        for part, seed in ((truth.left, 3), (truth.right, 4)):
            part.add_(0.3 * torch.randn(part.shape, generator=generator(seed)))
    wanted, rows = truth(torch.arange(18)).latents.detach(), torch.arange(6, 12)
    codes = spectral()
    before = codes(torch.arange(18)).latents.detach()
    codes.set_latents(rows, wanted[rows])
    after = codes(torch.arange(18)).latents
    assert (after[rows] - wanted[rows]).norm() < 0.15 * wanted[rows].norm()
    others = [*range(6), *range(12, 18)]
    assert torch.equal(after[others], before[others])
    assert all(part.requires_grad and part.is_leaf and part.grad is None for part in codes.parameters())


def test_stored_parts_give_the_same_codes():
    codes = spectral()
    again = stored_codes(codes.tensors(), LABELS)
    assert torch.equal(again(torch.arange(18)).latents, codes(torch.arange(18)).latents)
    broken = {**codes.tensors(), "mixing": torch.zeros(3, 3, 1, 1)}
    with pytest.raises(UserError, match="which do not belong together"):
        stored_codes(broken, LABELS)


def stored_set(wnids, seed):
    labels = torch.arange(len(wnids)).repeat_interleave(4)
    parts = {
        name: torch.full((len(wnids), 2, 1), float(seed)) + torch.arange(len(wnids))[:, None, None]
        for name in PARTS
    }
    return DistilledSet.from_images(
        random_images(len(labels), seed=seed), labels, classes_of(wnids), codes=parts
    )


def test_sets_are_counted_by_their_parts_merged_by_class_and_cut_to_their_images():
    one, other = stored_set(["b", "d"], 10), stored_set(["a"], 20)
    assert one.is_product
    assert one.storage.form == "codes"
    assert one.storage.total(labels=False).bytes == 4 * 4 * 2 * 2
    whole = merge([one, other], classes_of(["a", "b", "d"]))
    assert whole.codes["small"][:, 0, 0].tolist() == [20, 10, 11]
    assert whole.first(1).codes is None


@pytest.mark.parametrize("kind", [PixelPrior, LatentDiffusionPrior])
def test_distilled_in_pixels_and_latents(kind, digits, tiny_prior_path, tmp_path):
    prior = PixelPrior(32) if kind is PixelPrior else kind(str(tiny_prior_path), num_steps=0)
    model = fit(prior, matching(), tmp_path, 2, digits, images_per_class=4, codes=of_two_tensors)
    found = DistilledSet.load(tmp_path)
    assert found.codes.keys() == PARTS
    assert torch.equal(model.synthesis.draw(), found.images)
    start = fit(prior, matching(), tmp_path / "start", 0, digits, images_per_class=4, codes=of_two_tensors)
    for name, part in start.codes.named_parameters():
        assert not torch.equal(part, dict(model.codes.named_parameters())[name]), name
    assert len(start.distilled_set().images.flatten(1).unique(dim=0)) == 40


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_the_chunks_of_a_start_change_nothing(chunk_size, digits, tmp_path):
    """Kernels are shared by a class, so that its latents are fitted together, however many are encoded at once."""
    starts = [
        fit(
            PixelPrior(32), matching(), tmp_path / str(chunk), 0, digits, images_per_class=4, codes=of_two_tensors,
            initializer=RealEncodings(chunk_size=chunk),
        )
        for chunk in (chunk_size, 64)
    ]  # fmt: skip
    one, other = (start.codes.state_dict() for start in starts)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def of_two_tensors(*parts):
    return SpectralCodes(*parts, tensors=2)


def test_what_does_not_fit(digits, tiny_prior_path):
    with pytest.raises(UserError, match=r"codes.tensors \(4\): images_per_class \(6\) must be a multiple"):
        spectral(tensors=4)
    with pytest.raises(UserError, match=r"codes.size \(7\) must be at most the size of the latents \(6\)"):
        spectral(size=7)
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)
    with pytest.raises(UserError, match="have no condition and no noise for each image"):
        Distiller(prior, matching(), digits.spec, images_per_class=4, codes=of_two_tensors)
