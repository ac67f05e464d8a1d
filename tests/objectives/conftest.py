"""Three digits and experts of them, for objectives that read trajectories."""

import pytest
from d3_world import TINY

from ldd.data import DistillationData
from ldd.experts.recording import record_experts


@pytest.fixture(scope="module")
def data():
    data = DistillationData(subset=["0", "1", "2"])
    data.setup()
    return data


@pytest.fixture(scope="module")
def experts(data, tmp_path_factory):
    root = str(tmp_path_factory.mktemp("experts"))
    record_experts(data, TINY, num_experts=2, epochs=3, learning_rate=0.05, out=root, progress=False)
    return root
