"""Networks that are printed alike and start with equal weights are told apart by what they keep of their arguments."""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldd.networks import ConvNet, ViT
from ldd.networks.settings import settings_of


class Plain(nn.Module):
    """Keeps anything, and shows nothing of it."""

    def __init__(self, kept=None, buffer=None):
        super().__init__()
        self._kept = kept
        self.register_buffer("table", buffer, persistent=False)


class Holder:
    def __init__(self, value):
        self.value, self.owner = value, self


@dataclass
class Config:
    rate: float


def power(x, exponent):
    return x**exponent


def enclosing(value):
    def scale(x):
        return x * value

    return scale


def of_class(value):
    class Local(nn.Module):
        def forward(self, x):
            return x * value

    return Local()


def with_class_attribute(value):
    class Local(nn.Module):
        share = value

    return Local()


def unregistered(p):
    return Plain([nn.Dropout(p)])


PAIRS = {
    "number": lambda v: Plain(v),
    "nested": lambda v: Plain({"a": [(v, 1)]}),
    "text": lambda v: Plain(str(v)),
    "set": lambda v: Plain({"a", "b", str(v)}),
    "tensor": lambda v: Plain(torch.arange(3) + v),
    "array": lambda v: Plain((torch.arange(3) + v).numpy()),
    "bfloat16": lambda v: Plain(torch.full((2,), float(v), dtype=torch.bfloat16)),
    "unsaved buffer": lambda v: Plain(buffer=torch.full((2, 2), float(v))),
    "function": lambda v: Plain([F.relu, F.gelu][v - 1]),
    "closure": lambda v: Plain(enclosing(v)),
    "partial": lambda v: Plain(partial(power, exponent=v)),
    "lambda": lambda v: Plain([lambda x: x + 1, lambda x: x - 1][v - 1]),
    "default": lambda v: Plain(lambda x, factor=v: x * factor),
    "bound method": lambda v: Plain([Holder(0).__init__, Plain().extra_repr][v - 1]),
    "object": lambda v: Plain(Holder(v)),
    "dataclass": lambda v: Plain(Config(v)),
    "namespace": lambda v: Plain(SimpleNamespace(rate=v)),
    "class": lambda v: Plain([Config, Holder][v - 1]),
    "class attribute": with_class_attribute,
    "enclosed by a method": of_class,
    "unregistered module": lambda v: unregistered(v / 10),
    "long": lambda v: Plain([0] * 1000 + [v]),
    "heads of torch": lambda v: nn.MultiheadAttention(4, v),
    "order of torch": lambda v: nn.TransformerEncoderLayer(4, 1, 4, norm_first=v == 1),
    "activation of torch": lambda v: nn.TransformerEncoderLayer(4, 1, 4, activation=["relu", "gelu"][v - 1]),
    "mean of torch": lambda v: nn.Sequential(nn.AvgPool2d(2, count_include_pad=v == 1)),
    "corners of torch": lambda v: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=v == 1),
    "ViT": lambda v: ViT(2, 32, dim=8, depth=1, heads=v),
    "training alone": lambda v: Plain({"drop path": v / 10}),
}


@pytest.mark.parametrize("made", PAIRS.values(), ids=PAIRS)
def test_what_a_network_keeps_sets_it_apart(made):
    with torch.random.fork_rng():
        one, again, other = (settings_of(made(value)) for value in (1, 1, 2))
    assert one == again
    assert one != other


def test_nothing_is_drawn_or_changed_and_place_and_mode_do_not_count():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), Plain(torch.device("cpu"))).train()
    generator, state = torch.random.get_rng_state(), {k: v.clone() for k, v in network.state_dict().items()}
    found = settings_of(network)
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    network[2]._kept = torch.device("meta")
    assert settings_of(network.to("meta").eval()) == found


def test_other_weights_are_the_same_settings():
    assert settings_of(ConvNet(2, 32)) == settings_of(ConvNet(2, 32))


def test_what_has_an_address_is_the_same_in_every_process():
    kept = [object(), torch.Generator(), enclosing(Holder(partial(power, exponent=object())))]
    (line,) = settings_of(Plain(kept))
    assert " at 0x" not in line
    assert settings_of(Plain([object(), *kept[1:]])) == (line,)


def test_a_difference_can_be_read():
    lines = settings_of(ViT(2, 32, dim=8, depth=2, heads=4))
    assert "blocks.2: heads=4" in lines
    assert max(map(len, settings_of(Plain(list(range(1000)))))) < 300
