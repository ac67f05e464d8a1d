"""Packed codes: the objective sees what students of the stored grids see, in pixels and through a prior."""

import pytest
import torch
from small_runs import fit, matching

from ldd.artefact.set import DistilledSet
from ldd.codes import PackedCodes
from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.evaluation import ClassifierLabels
from ldd.priors import AutoencoderPrior, LatentDiffusionPrior, PixelPrior


@pytest.mark.parametrize("kind", [PixelPrior, AutoencoderPrior, LatentDiffusionPrior])
def test_what_is_matched_is_what_students_see(kind, digits, tiny_prior_path, tmp_path):
    prior = PixelPrior(32) if kind is PixelPrior else kind(str(tiny_prior_path))
    model = fit(prior, matching(), tmp_path, 2, digits, images_per_class=2, codes=PackedCodes)
    stored = DistilledSet.load(tmp_path)
    assert (stored.packing, stored.images_per_class, stored.codes) == (2, 2, None)
    assert len(model.codes) == 80
    step = model.context(digits.core_set, 2)
    with torch.no_grad():
        matched = step.decode(step.rows)
    seen = stored.unpacked()
    assert torch.equal(seen.labels, model.codes.labels)
    assert (
        (matched + 1) * 127.5 - seen.images.float()
    ).abs().max() <= 1.01  # rounded twice: small, then grown


def test_a_step_moves_every_code(digits, tmp_path):
    start = fit(PixelPrior(32), matching(), tmp_path / "start", 0, digits, codes=PackedCodes)
    moved = fit(PixelPrior(32), matching(), tmp_path / "moved", 1, digits, codes=PackedCodes)
    change = (moved.codes.latents - start.codes.latents).abs().flatten(1).amax(1)
    assert (change > 0).all()
    assert len({code.sum().item() for code in start.codes.latents}) == 40


def test_what_does_not_go_with_a_grid(digits):
    with pytest.raises(UserError, match=r"packing \(2\): images of 32 px|codes.packing \(1\)"):
        Distiller(
            PixelPrior(32), matching(), digits.spec, codes=lambda *parts: PackedCodes(*parts, packing=1)
        )
    with pytest.raises(UserError, match=r"packing \(16\): images of 32 px cannot be cut"):
        Distiller(
            PixelPrior(32), matching(), digits.spec, codes=lambda *parts: PackedCodes(*parts, packing=16)
        )
    labels = ClassifierLabels("resnet18", "IMAGENET1K_V1")
    with pytest.raises(UserError, match=r"model.codes: packed images are grids"):
        Distiller(PixelPrior(32), matching(), digits.spec, codes=PackedCodes, labels=labels)
