"""Baselines made of others: what they keep of these, what they change, and what they are charged."""

from dataclasses import replace

import pytest
import torch
from small_world import NARROW, SPEC, SmallData, small_set

from ldd.evaluation import (
    Baseline,
    CompressedReal,
    EncodedReal,
    EqualBytes,
    EqualSteps,
    FullReal,
    Labeller,
    RandomReal,
    Setting,
    SoftLabels,
    StoredSet,
)
from ldd.evaluation.baselines.variants import Plain
from ldd.students.training import fresh_network

OWN = ("augmented", "full_data", "equal_steps", "by_bytes", "repeats")


class Odd(Baseline):
    """Unlike others in all that can be told of a baseline."""

    name = "odd"
    augmented, full_data, equal_steps, by_bytes, repeats = False, True, True, True, 3

    def set_for(self, repeat, setting):
        return RandomReal().set_for(repeat, setting)

    def per_class(self, setting):
        return [5, 6, 7]


@pytest.fixture
def setting():
    data = SmallData()
    data.setup()
    labeller = Labeller(fresh_network(NARROW, SPEC, 0, "t", 0).eval(), SPEC, top_k=2)
    return Setting(data, [2, 2, 2], seed=0, bytes=20_000, labeller=labeller)


@pytest.mark.parametrize(
    "of", [Odd(), RandomReal(), EqualBytes(), FullReal(), Plain(EqualSteps(EqualBytes()))]
)
@pytest.mark.parametrize(
    ("made", "changed"),
    [(SoftLabels, {}), (EqualSteps, {"equal_steps": True}), (Plain, {"augmented": False})],
)
def test_all_that_is_known_of_the_other_stays(setting, made, changed, of):
    found = made(of)
    assert {name: getattr(found, name) for name in OWN} == {name: getattr(of, name) for name in OWN} | changed
    assert found.per_class(setting) == (setting.counts if made is EqualSteps else of.per_class(setting))
    assert found.size(0, setting)[:2] == of.size(0, setting)[:2]


def test_soft_labels_leave_the_bytes_of_the_images(setting, tiny_prior_path):
    """Each has 8 bytes for its class, 2 x 2 for probabilities and 2 x 2 for their classes."""
    codes = {"latents": torch.zeros(6, 4, 1, 1), "log_variance": torch.zeros(6, 4, 1, 1)}
    for of, images in (
        (RandomReal(), 6 * 3072),
        (CompressedReal(2), None),
        (EncodedReal(2, str(tiny_prior_path)), None),
        (StoredSet("codes", small_set(2, codes=codes)), 2 * 6 * 4 * 4),
    ):
        hard = of.storage(setting.made(of, 0), setting)
        made = SoftLabels(of)
        for one in (made, EqualSteps(made), SoftLabels(Plain(of))):
            storage = one.storage(setting.made(one, 0), setting)
            assert storage == replace(hard, labels=storage.labels), one.name
            assert (storage.labels.floats, storage.labels.bytes) == (6 * 2, 6 * (8 + 4 + 4))
        assert images in (None, storage.total(labels=False).bytes)
        assert hard.total(labels=False).bytes <= 6 * 3072
