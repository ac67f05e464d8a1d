"""Real images as WebP or an autoencoder stores them, by the bytes of the files."""

import io

import pytest
import torch
from PIL import Image
from small_world import NARROW, SmallData, protocol_file, small_set

from ldd.artefact.uploads import numbers_of, rounded
from ldd.errors import UserError
from ldd.evaluation import CompressedReal, EncodedReal, Protocol, RandomReal, Setting, evaluate
from ldd.images import to_bytes, to_unit_range
from ldd.priors import AutoencoderPrior


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


def test_more_than_a_class_has(setting, tiny_prior_path):
    more = r": images per class \(9\) is more than the 8 real images of class 0"
    with pytest.raises(UserError, match=f"compressed_real10_ipc9{more}"):
        CompressedReal(9).size(0, setting)
    with pytest.raises(UserError, match=f"encoded_real_uint8_ipc9{more}"):
        EncodedReal(9, str(tiny_prior_path)).size(0, setting)


def by_levels(latents, precision):
    """Bytes of (N, c, h, w), and what comes back, in float64 from the formula."""
    if precision == "float32":
        return 4 * latents.numel(), latents
    if precision == "bfloat16":
        return 2 * latents.numel(), latents.bfloat16().float()
    rows = latents.double().flatten(1)
    low, high = rows.min(1, keepdim=True)[0], rows.max(1, keepdim=True)[0]
    levels = torch.round(255 * (rows - low) / (high - low))
    back = low + levels * (high - low) / 255
    return latents.numel() + 8 * len(latents), back.view(latents.shape).float()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "uint8"])
def test_the_draws_of_random_images_through_an_autoencoder(setting, tiny_prior_path, precision):
    autoencoder = AutoencoderPrior(str(tiny_prior_path), 32)
    baseline = EncodedReal(3, str(tiny_prior_path), precision)
    assert (baseline.size(1, setting).images, baseline.per_class(setting)) == (9, [3, 3, 3])
    for repeat in (0, 1):
        real = RandomReal(3).set_for(repeat, setting)
        latents = autoencoder.encode(real.images / 127.5 - 1)
        size, back = by_levels(latents, precision)
        pictures = ((autoencoder.decode(back).detach().clamp(-1, 1) + 1) * 127.5).round()
        made = setting.made(baseline, repeat)
        assert (made.images.float() - pictures).abs().max() <= 1  # a level of 256, where rounding is a tie
        assert (made.images.float() - pictures).abs().mean() < 0.01
        assert torch.equal(made.labels, real.labels)
        assert baseline.storage(made, setting).total().bytes == size + 8 * len(made.labels)
    assert baseline.name == f"encoded_real_{precision}_ipc3"


def test_latents_that_nobody_optimised(setting, tiny_prior_path):
    """A set of encodings, sent in eight bits and imported, is what the baseline makes of the same images."""
    real = RandomReal(2).set_for(0, setting)
    prior = AutoencoderPrior(str(tiny_prior_path), 32)
    sent = numbers_of(rounded("latents", prior.encode(to_unit_range(real.images)), "uint8"))["latents"]
    made = setting.made(EncodedReal(2, str(tiny_prior_path)), 0)
    assert torch.equal(made.images, to_bytes(prior.decode(sent)))


def test_a_table_of_latents(tmp_path, tiny_prior_path):
    protocol = Protocol.load(protocol_file(tmp_path))
    baselines = [EncodedReal(2, str(tiny_prior_path)), EncodedReal(2, str(tiny_prior_path), "float32")]
    settings = {"repeats": 1, "num_workers": 1, "progress": False, "baselines": baselines}
    units = evaluate(small_set(2), {"narrow": NARROW}, SmallData(), protocol, **settings).units()
    few, many = units["encoded_real_uint8_ipc2"], units["encoded_real_float32_ipc2"]
    assert (few.images, many.images) == (2, 2)
    assert few.bytes < many.bytes / 2 < 3 * 32 * 32


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"images_per_class": 0}, r"encoded_real.images_per_class \(0\) must be at least 1"),
        (
            {"images_per_class": 1, "precision": "int4"},
            r"encoded_real.precision \(int4\) must be one of float32, bfloat16, uint8",
        ),
    ],
)
def test_latents_that_cannot_be_had(settings, said):
    with pytest.raises(UserError, match=said):
        EncodedReal(path_or_hub_id="x", **settings)


def test_an_autoencoder_that_is_not_there_is_told_before_a_student_learns(setting, tmp_path):
    with pytest.raises(UserError, match=r"gone"):
        EncodedReal(1, str(tmp_path / "gone")).size(0, setting)
