"""Every initialiser of the package passes the conformance suite."""

import pytest
from initializer_conformance import InitializerConformance
from small_world import NARROW

from ldd.initializers import (
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
    RealEncodings,
    SeparatedGroups,
    TrainedFeatures,
    TransportGuidance,
)
from ldd.networks.scoring import ScoringNetwork

TRAINING = ScoringNetwork(network=NARROW, epochs=2, batch_size=12)


class TestRealEncodings(InitializerConformance):
    needs_diffusion = False

    @pytest.fixture
    def initializer(self):
        return RealEncodings()


class TestGaussianLatents(InitializerConformance):
    needs_diffusion = needs_encoder = False

    @pytest.fixture
    def initializer(self):
        return GaussianLatents()


class TestKMeansCentroids(InitializerConformance):
    @pytest.fixture
    def initializer(self):
        return KMeansCentroids(num_steps=4)


class TestCentroidsAlone(InitializerConformance):
    needs_diffusion = False

    @pytest.fixture
    def initializer(self):
        return KMeansCentroids(strength=0, max_images=4)


class TestModeGuidance(InitializerConformance):
    @pytest.fixture
    def initializer(self):
        return ModeGuidance(num_steps=3)


class TestInvertedStatistics(InitializerConformance):
    @pytest.fixture
    def initializer(self):
        return InvertedStatistics(num_steps=3, groups=4)


class TestPriorSamples(InitializerConformance):
    needs_encoder = False

    @pytest.fixture
    def initializer(self):
        return PriorSamples(num_steps=2)


class TestGuidedSamples(InitializerConformance):
    needs_encoder = False

    @pytest.fixture
    def initializer(self):
        return PriorSamples(
            num_steps=2, guidance=LossGuidance(first_step=1, last_step=1, real_batch=3, network=NARROW)
        )


class TestSeparatedGroups(InitializerConformance):
    needs_encoder = False

    @pytest.fixture
    def initializer(self):
        return SeparatedGroups(PriorSamples(num_steps=1), groups=2, training=TRAINING)


class TestHerdedOrder(InitializerConformance):
    needs_encoder = False

    @pytest.fixture
    def initializer(self):
        return HerdedOrder(PriorSamples(num_steps=1), groups=2, training=TRAINING)


class TestDifficultyMatched(InitializerConformance):
    needs_diffusion = False

    @pytest.fixture
    def initializer(self):
        return DifficultyMatched(RealEncodings(), groups=2, training=TRAINING)


class TestJointGuidance(InitializerConformance):
    @pytest.fixture
    def initializer(self):
        return PriorSamples(num_steps=3, guidance=JointGuidance())


class TestEntropyGuidance(InitializerConformance):
    @pytest.fixture
    def initializer(self):
        return PriorSamples(num_steps=3, guidance=EntropyGuidance(first_step=1, training=TRAINING))


class TestTransportGuidance(InitializerConformance):
    @pytest.fixture
    def initializer(self):
        return PriorSamples(num_steps=3, guidance=TransportGuidance(first_step=2, last_step=1, centroids=3))


class TestModesInFeatures(InitializerConformance):
    @pytest.fixture
    def initializer(self):
        return ModeGuidance(num_steps=3, features=TrainedFeatures(TRAINING), average=2, components=3)
