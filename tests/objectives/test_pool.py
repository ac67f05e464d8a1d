"""A pool of matching networks: each step draws one, alone or for a whole outer loop, the same after a stop."""

from functools import partial

import pytest
import torch
import yaml
from small_runs import NARROW, fit

from ldd import cli
from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.networks import VGG11, ConvNet, ResNet18
from ldd.objectives import DistributionMatching, GradientMatching
from ldd.objectives.matching import MatchingObjective
from ldd.priors import PixelPrior
from ldd.runtime import seeding
from tests.objectives.test_distribution import pixel_step

JOINT = partial(ConvNet, width=8, norm="batch")
POOL = [NARROW, partial(VGG11, width=4), JOINT]


def drawn_by_hand(step: int, seed: int = 0) -> int:
    return int(torch.randint(len(POOL), (), generator=seeding.generator(seed, "pool", step, None)))


def test_each_step_matches_the_network_that_its_seed_draws(digits):
    """The loss of a pool is that of the drawn network alone, and every network has its turn."""
    pool = DistributionMatching(real_batch=4, network=POOL)
    model, _ = pixel_step(digits, pool)
    seen = set()
    for number in range(8):
        step, which = model.context(digits.core_set, number), drawn_by_hand(number)
        seen.add(which)
        (term,) = pool.terms(step)
        alone = DistributionMatching(real_batch=4, network=POOL[which])
        (expected,) = alone.terms(model.context(digits.core_set, number))
        loss, wanted = (x.value if x.report is None else x.report for x in (term, expected))
        assert loss.item() == wanted.item()
        assert term.metrics["network"].item() == which
        assert not expected.metrics
    assert seen == {0, 1, 2}


def test_ranks_draw_one_network_and_report_it_once(digits):
    pool = DistributionMatching(real_batch=4, network=POOL)
    model, _ = pixel_step(digits, pool)
    number = next(n for n in range(20) if drawn_by_hand(n) == 1)
    terms = [next(pool.terms(model.context(digits.core_set, number, rank, 2))) for rank in (0, 1)]
    assert sum(term.metrics["network"].item() for term in terms) == pytest.approx(1, abs=1e-6)


def gradient_matching() -> MatchingObjective:
    return GradientMatching(0.1, 0.1, real_batch=4, network=[NARROW, partial(ConvNet, width=4)], outer_loop=3)


def test_a_network_of_the_pool_is_trained_through_its_outer_loop_and_resumed(digits, tmp_path):
    """Six steps at once and with a stop within the second outer loop give the same codes, to the bit."""
    whole = fit(PixelPrior(32), gradient_matching(), tmp_path / "whole", 6, digits, seed=3)
    fit(PixelPrior(32), gradient_matching(), tmp_path / "parts", 4, digits, seed=3)
    last = max((tmp_path / "parts").rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    resumed = fit(PixelPrior(32), gradient_matching(), tmp_path / "parts", 6, digits, ckpt_path=last, seed=3)
    assert torch.equal(whole.codes.latents, resumed.codes.latents)
    width = {8: 0, 4: 1}[whole.objective._trained["features.0.weight"].shape[0]]
    assert width == int(torch.randint(2, (), generator=seeding.generator(3, "pool", 3, None)))


def test_the_set_has_seen_the_whole_pool(digits, tmp_path):
    model = fit(PixelPrior(32), DistributionMatching(real_batch=4, network=POOL[:2]), tmp_path, 1, digits)
    assert model.distilled_set().manifest.seen_networks == [
        "ldd.networks.convnet.ConvNet",
        "ldd.networks.vgg.VGG11",
    ]


def test_the_same_pool_has_a_memory_plan_for_each_network(digits):
    pool = DistributionMatching(real_batch=4, network=[NARROW, partial(ResNet18, width=4, norm="instance")])
    model = Distiller(PixelPrior(32), pool, digits.spec)
    for number in range(6):
        list(pool.terms(model.context(digits.core_set, number)))
    assert set(model.planner.plans) == {"codes", "codes for network 1"}


def test_a_recipe_takes_a_list(capsys):
    """And an argument of the default network can still be given without naming it."""
    base = ["fit", "--config", "quickstart", "--print_config"]
    networks = "[{class_path: ldd.networks.ConvNet, init_args: {width: 8}}, ldd.networks.VGG11]"
    with pytest.raises(SystemExit) as end:
        cli.main([*base, "--model.objective.network", networks])
    assert end.value.code in (0, None)
    found = yaml.safe_load(capsys.readouterr().out)["model"]["objective"]["init_args"]["network"]
    assert [network["init_args"]["width"] for network in found] == [8, 64]
    with pytest.raises(SystemExit):
        cli.main([*base, "--model.objective.network.width", "16"])
    found = yaml.safe_load(capsys.readouterr().out)["model"]["objective"]["init_args"]["network"]
    assert found["init_args"]["width"] == 16


def test_an_empty_pool_is_refused():
    with pytest.raises(
        UserError, match=r"objective.network \(\[\]\) must be a network, or a list of one or more"
    ):
        DistributionMatching(network=[])
