"""Real images as WebP stores them, by the bytes of the files."""

import io

import pytest
import torch
from PIL import Image
from small_world import NARROW, SmallData, protocol_file, small_set

from ldd.errors import UserError
from ldd.evaluation import CompressedReal, Protocol, RandomReal, Setting, evaluate


@pytest.fixture
def setting():
    data = SmallData()
    data.setup()
    return Setting(data, [2, 2, 2], seed=0)


def by_pillow(images, quality):
    """Files and pictures of (N, 3, H, W) uint8."""
    files, pictures = [], []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "WEBP", quality=quality, method=6)
        files.append(len(file.getvalue()))
        pixels = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
        pictures.append(torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8).view(32, 32, 3))
    return files, torch.stack(pictures).permute(0, 3, 1, 2)


@pytest.mark.parametrize("quality", [0, 10, 100])
def test_the_draws_of_random_images_through_files(setting, quality):
    baseline = CompressedReal(3, quality)
    for repeat in (0, 1):
        real = RandomReal(3).set_for(repeat, setting)
        files, pictures = by_pillow(real.images, quality)
        made = setting.made(baseline, repeat)
        assert torch.equal(made.images, pictures)
        assert torch.equal(made.labels, real.labels)
        storage = baseline.storage(made, setting)
        assert storage.total().bytes == sum(files) + 8 * len(files)
        assert (baseline.size(repeat, setting).images, baseline.per_class(setting)) == (9, [3, 3, 3])
    assert baseline.name == f"compressed_real{quality}_ipc3"


def test_a_table_shows_the_bytes_of_the_files(tmp_path):
    protocol = Protocol.load(protocol_file(tmp_path))
    settings = {
        "repeats": 1,
        "num_workers": 1,
        "progress": False,
        "baselines": [CompressedReal(2), RandomReal(2)],
    }
    units = evaluate(small_set(2), {"narrow": NARROW}, SmallData(), protocol, **settings).units()
    assert units["random_real_ipc2"].bytes == 2 * (3 * 32 * 32 + 8)
    assert units["compressed_real10_ipc2"].bytes < units["random_real_ipc2"].bytes / 3
    assert units["compressed_real10_ipc2"].images == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"images_per_class": 0}, r"compressed_real.images_per_class \(0\) must be at least 1"),
        ({"images_per_class": 1, "quality": 101}, r"compressed_real.quality \(101\) must be 0 to 100"),
    ],
)
def test_what_cannot_be_had(settings, said):
    with pytest.raises(UserError, match=said):
        CompressedReal(**settings)


def test_more_than_a_class_has(setting):
    with pytest.raises(UserError, match=r"images per class \(9\) is more than the 8 real images of class 0"):
        CompressedReal(9).size(0, setting)
