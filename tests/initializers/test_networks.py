"""Initialisers name the networks that they ask, through whatever asks them."""

from functools import partial

import pytest
import torch
from small_world import NARROW, SPEC
from torchvision.models import get_model

from ldd.initializers import (
    AutoencoderFeatures,
    DifficultyMatched,
    EntropyGuidance,
    GaussianLatents,
    HerdedOrder,
    InvertedStatistics,
    JointGuidance,
    KMeansCentroids,
    LossGuidance,
    ModeGuidance,
    PriorSamples,
    PublishedFeatures,
    RealEncodings,
    SeparatedGroups,
    TrainedFeatures,
    TransportGuidance,
)
from ldd.networks import AlexNet, ViT
from ldd.networks.scoring import ScoringNetwork

CONVNET, ALEXNET, VIT = "ldd.networks.convnet.ConvNet", "ldd.networks.alexnet.AlexNet", "ldd.networks.vit.ViT"
TRAINING = ScoringNetwork(network=partial(ViT, dim=8, depth=1, heads=2))
GUIDED = PriorSamples(guidance=LossGuidance(network=partial(AlexNet, width=8)))


@pytest.mark.parametrize(
    ("initializer", "networks"),
    [
        (RealEncodings(), set()),
        (GaussianLatents(), set()),
        (KMeansCentroids(), set()),
        (InvertedStatistics(), set()),
        (PriorSamples(), set()),
        (PriorSamples(guidance=JointGuidance()), set()),
        (PriorSamples(guidance=TransportGuidance()), set()),
        (PriorSamples(guidance=EntropyGuidance(training=TRAINING)), {VIT}),
        (PriorSamples(guidance=LossGuidance("gradient", network=NARROW)), {CONVNET}),
        (GUIDED, {ALEXNET}),
        (ModeGuidance(), set()),
        (ModeGuidance(features=TrainedFeatures(TRAINING)), {VIT}),
        (ModeGuidance(features=AutoencoderFeatures("embedded:digits")), set()),
        (SeparatedGroups(GUIDED, training=TRAINING), {ALEXNET, VIT}),
        (HerdedOrder(RealEncodings()), {CONVNET}),
        (DifficultyMatched(DifficultyMatched(GUIDED, training=TRAINING)), {ALEXNET, CONVNET, VIT}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_networks(initializer, networks):
    before = torch.random.get_rng_state()
    assert initializer.networks(SPEC) == networks
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_classifier_of_torchvision_is_named_by_its_architecture(tmp_path):
    torch.save(get_model("squeezenet1_1", num_classes=3).state_dict(), tmp_path / "own.pt")
    features = PublishedFeatures("squeezenet1_1", str(tmp_path / "own.pt"))
    assert ModeGuidance(features=features).networks(SPEC) == {"torchvision.models.squeezenet1_1"}
