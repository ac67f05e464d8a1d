"""Objects show themselves in a line, and in a notebook; a trainer without our callbacks says what it will not do."""

import html
import logging
import re

import lightning as L
import numpy as np
import pytest
import torch
from small_runs import NARROW, matching
from small_world import SmallData, protocol_file, small_set

from ldd import Distiller, LatentDiffusionPrior, PixelPrior, evaluate
from ldd.data.pruning import ScoreFacts, ScoreTable
from ldd.data.sources import Item
from ldd.evaluation import RandomReal
from ldd.images import ClassInfo


def test_models_and_priors(digits, tiny_prior_path):
    prior = LatentDiffusionPrior(str(tiny_prior_path))
    assert repr(prior).startswith("LatentDiffusionPrior(32 x 32 px, latents of 4 x 8 x 8, 10 steps, ")
    model = Distiller(prior, matching(), digits.spec, images_per_class=2)
    assert repr(model).startswith(
        "Distiller(PointCodes: 2 of each of 10 classes, step 0; DistributionMatching, "
    )
    assert len(repr(model)) < 250
    assert "0 weights" in repr(PixelPrior(32))
    cells = re.findall(r">([^<>]+)</td>", model._repr_html_())
    assert cells[:6] == [
        *("codes", "PointCodes: 2 of each of 10 classes", "step", "0"),
        *("objective", "DistributionMatching"),
    ]
    assert cells[7] == html.escape(repr(prior))
    cells = re.findall(r">([^<>]+)</td>", prior._repr_html_())
    assert cells[:6] == ["images", "32 x 32 px", "latents", "4 x 8 x 8", "steps", "10"]
    assert cells[7] == f"{sum(weight.numel() for weight in prior.parameters()):,}"


def test_a_score_table():
    items = [Item(f"{label}/{n}", label) for label in (0, 1) for n in range(3)]
    classes = [ClassInfo(0, 0, "<a>", "a"), ClassInfo(1, 1, "b", "b")]
    table = ScoreTable.build(items, None, classes, ScoreFacts("random"), np.arange(6.0))
    assert repr(table) == "ScoreTable(6 images of 2 classes by random, nothing selected)"
    kept = table.with_kept(torch.tensor([0, 4]))
    assert repr(kept) == "ScoreTable(6 images of 2 classes by random, 2 kept)"
    assert kept.tabulate().rows[-1] == ("", "all", "6", "2", "0 to 4", "0 to 5")
    assert "&lt;a&gt;" in kept._repr_html_()
    assert table.tabulate().rows[0] == ("0", "<a>", "3", "0", "", "0 to 2")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    protocol = protocol_file(tmp_path_factory.mktemp("protocol"), epochs=2)
    networks, baselines = {"narrow": NARROW}, [RandomReal()]
    return evaluate(
        small_set(), networks, SmallData(), protocol, repeats=2, baselines=baselines, num_workers=1
    )


def test_a_report(report):
    assert repr(report).startswith(
        "Report(2 sets, 1 networks, protocol small, step 0; mean of unseen in %: distilled "
    )
    assert report._repr_html_().count("<table>") == len(report.tables()) == 3
    (axes,) = report.plot().axes
    assert [container.get_label() for container in axes.containers] == ["distilled", "random_real"]
    for container, (_, of_set) in zip(axes.containers, report.scores().items(), strict=True):
        assert container[0].get_ydata()[0] == pytest.approx(100 * of_set["narrow"].mean)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["narrow", "mean unseen"]


@pytest.mark.parametrize("verb", ["fit", "validate"])
def test_a_trainer_without_our_callbacks(digits, tmp_path, caplog, verb, recwarn):
    settings = {"accelerator": "cpu", "default_root_dir": tmp_path, "max_steps": 2, "logger": False}
    model = Distiller(PixelPrior(32), matching(), digits.spec)
    with caplog.at_level(logging.INFO):
        trainer = L.Trainer(**settings)
        getattr(trainer, verb)(model, digits)
    said = caplog.text
    assert (
        said.count("no accuracy will be measured: give the trainer callbacks=[ldd.CrossArchitecture()") == 1
    )
    assert "Tip" not in said
    assert not [w for w in recwarn if "eval mode" in str(w.message) or "tensorboardX" in str(w.message)]
    assert ("training: 2 steps in" in said) == (verb == "fit")


def test_nothing_is_missing_where_it_is_meant(digits, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        L.Trainer(
            accelerator="cpu", max_steps=1, default_root_dir=tmp_path, logger=False, limit_val_batches=0
        ).fit(Distiller(PixelPrior(32), matching(), digits.spec), digits)
    assert "no accuracy" not in caplog.text
