"""Networks that score: what goes through them in batches, and what their weights follow from."""

from functools import partial

import pytest
import torch

from ldd.errors import UserError
from ldd.images import ClassInfo, DataSpec
from ldd.networks import ConvNet, ViT
from ldd.networks.scoring import CHUNK, ScoringNetwork, in_batches
from ldd.runtime.devices import find_device
from ldd.runtime.seeding import generator

SPEC = DataSpec([ClassInfo(i, i, f"c{i}", f"c{i}") for i in range(2)], 32, (0.5,) * 3, (0.2,) * 3, "test")
TINY = ScoringNetwork(lambda classes, size: ConvNet(classes, size, width=2), epochs=1, device="cpu")


def random_bytes(n):
    return torch.randint(256, (n, 3, 32, 32), generator=generator(0, "images"), dtype=torch.uint8)


def test_batches_give_what_all_images_at_once_give():
    images = random_bytes(CHUNK + 3)
    seen = []

    def brightness(batch):
        seen.append(len(batch))
        return batch.mean((1, 2, 3))

    found = in_batches(brightness, SPEC, images, torch.device("cpu"))
    expected = (images.float() / 255 - 0.5).div(0.2).mean((1, 2, 3))
    assert seen == [CHUNK, 3]
    assert not found.requires_grad
    assert (found - expected).abs().max() < 1e-5


def test_trained_networks_follow_from_seed_and_key():
    images, labels = random_bytes(8), torch.tensor([0, 1] * 4)
    first = TINY.trained(images, labels, SPEC, 0, "a")
    again = TINY.build(SPEC, 0, "a")
    TINY.train(again, images, labels, SPEC, 0, "a")

    def logits(network):
        return TINY.judged(network, images, labels, SPEC, lambda out, _: out)

    assert logits(first).equal(logits(again))
    other = TINY.trained(images, labels, SPEC, 0, "b")
    assert not logits(first).equal(logits(other))
    assert first.training  # the mode is restored


@pytest.mark.parametrize("name", ["abacus", "cuda:0"])
def test_devices_that_are_not_there_are_refused(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"device='{name}'.*use (device=)?auto"):
        find_device(name)


def test_networks_of_other_settings_are_described_differently():
    of_heads = {
        heads: ScoringNetwork(partial(ViT, dim=8, depth=1, heads=heads), device="cpu").describe(SPEC, 0)
        for heads in (4, 8)
    }
    assert of_heads[4] != of_heads[8]


def test_attributes_are_described():
    def with_power(power, classes, size):
        network = ConvNet(classes, size, width=2)
        network.power = power
        return network

    one, again, other = (
        ScoringNetwork(partial(with_power, n), device="cpu").describe(SPEC, 0) for n in (1, 1, 2)
    )
    assert one == again
    assert one != other
