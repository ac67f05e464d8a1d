"""Small digits, shared by the runs of a file."""

import pytest

from ldd.data import DistillationData


@pytest.fixture(scope="package")
def data():
    data = DistillationData(image_size=16)
    data.setup()
    return data
