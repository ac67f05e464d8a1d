"""What a set records of the networks that took part in making it."""

from dataclasses import replace
from functools import partial

import pytest
from small_runs import NARROW, fit, matching

from ldd.artefact.set import DistilledSet
from ldd.data import CrossFittedLossPruner, DistillationData, RandomPruner, ScoringNetwork
from ldd.initializers import (
    EntropyGuidance,
    GaussianLatents,
    HerdedOrder,
    LossGuidance,
    PriorSamples,
    StoredCodes,
)
from ldd.networks import AlexNet, ViT
from ldd.priors import LatentDiffusionPrior, PixelPrior
from ldd.runs.folder import find_last

ALEXNET, CONVNET, VIT = "ldd.networks.alexnet.AlexNet", "ldd.networks.convnet.ConvNet", "ldd.networks.vit.ViT"
SMALL_VIT = ScoringNetwork(network=partial(ViT, dim=8, depth=1, heads=2), epochs=1, device="cpu")


@pytest.fixture
def prior(tiny_prior_path):
    return LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)


def seen(folder):
    return DistilledSet.load(folder).manifest.seen_networks


@pytest.mark.parametrize(
    ("guidance", "network"),
    [
        (LossGuidance(first_step=1, last_step=0, real_batch=4, network=partial(AlexNet, width=8)), ALEXNET),
        (EntropyGuidance(first_step=1, training=SMALL_VIT), VIT),
        (None, None),
    ],
    ids=["loss", "entropy", "none"],
)
def test_what_guided_took_part_and_what_matched_in_no_step_did_not(
    prior, digits, tmp_path, guidance, network
):
    start = PriorSamples(num_steps=2, guidance=guidance)
    of_start = [] if network is None else [network]
    with pytest.warns(UserWarning, match="max_steps is 0"):
        fit(prior, matching(), tmp_path / "none", 0, digits, initializer=start)
    assert seen(tmp_path / "none") == of_start
    fit(prior, matching(), tmp_path / "one", 1, digits, initializer=start)
    assert seen(tmp_path / "one") == sorted([*of_start, CONVNET])


def test_judges_of_a_pool_and_what_guided_it_took_part(prior, digits, tmp_path):
    pool = PriorSamples(
        num_steps=2, guidance=LossGuidance(first_step=1, last_step=0, real_batch=4, network=NARROW)
    )
    with pytest.warns(UserWarning, match="max_steps is 0"):
        fit(prior, matching(), tmp_path, 0, digits, initializer=HerdedOrder(pool, training=SMALL_VIT))
    assert seen(tmp_path) == [CONVNET, VIT]


def test_continued_codes_have_seen_what_their_set_had_wherever_it_is_by_then(digits, tmp_path):
    fit(PixelPrior(32), matching(), tmp_path / "first", 1, digits, initializer=GaussianLatents())
    first = DistilledSet.load(tmp_path / "first")
    manifest = first.manifest.replaced(seen_networks=["theirs.Net"])
    replace(first, manifest=manifest).save(tmp_path / "set")
    start, run = StoredCodes(str(tmp_path / "set")), tmp_path / "run"
    fit(PixelPrior(32), matching(), run, 2, digits, initializer=start)
    assert seen(run) == [CONVNET, "theirs.Net"]
    (tmp_path / "set").rename(tmp_path / "moved")
    fit(PixelPrior(32), matching(), run, 4, digits, ckpt_path=find_last(run), initializer=start)
    assert seen(run) == [CONVNET, "theirs.Net"]


@pytest.mark.parametrize(
    ("pruner", "network"),
    [
        (CrossFittedLossPruner(0.9, folds=2, training=SMALL_VIT, cache_dir=None), [VIT]),
        (RandomPruner(0.9), []),
    ],
    ids=["trained", "random"],
)
def test_what_scored_the_images_took_part(tmp_path, pruner, network):
    data = DistillationData(subset=["0", "1"], pruner=pruner)
    data.setup()
    fit(PixelPrior(32), matching(), tmp_path, 0, data, initializer=GaussianLatents())
    assert seen(tmp_path) == network
