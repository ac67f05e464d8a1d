"""Latents of training images: which views there are, and a file on disk that is never stale or half-written."""

import multiprocessing
import resource
import time
from functools import partial

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from tiny_prior import tiny_autoencoder
from torch import nn

from ldd.augmentation.affine import AffineViews
from ldd.data import RealImages
from ldd.disk.parts import NthPart
from ldd.errors import UserError
from ldd.prior_training.latents import CHUNK, LatentCache, LatentViews, encode_views, fingerprint
from ldd.runtime.seeding import generator, seeded

CPU = torch.device("cpu")
COUNT = CHUNK + 4  # two parts


@pytest.fixture(scope="module")
def real():
    images = torch.randint(0, 256, (COUNT, 3, 8, 8), generator=generator(0), dtype=torch.uint8)
    return RealImages(images, torch.arange(COUNT) // (COUNT // 2), [str(i) for i in range(COUNT)], 2)


def halve(images):
    """An encoder that is not symmetric: which side is which shows."""
    kernel = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).expand(3, 1, 2, 2)
    return nn.functional.conv2d(images, kernel, stride=2, groups=3)


def test_views_come_one_after_the_other_each_with_its_mirror_images(real):
    views = LatentViews(2, AffineViews(shift=0.2), mirror=True, seed=5)
    parts = list(encode_views(halve, real, views, CPU))
    assert [len(part) for part in parts] == [CHUNK, COUNT - CHUNK] * 4
    found = torch.cat(parts).view(len(views), COUNT, 3, 4, 4)
    plain = real.images / 127.5 - 1
    halves = zip(plain.split(CHUNK), (0, 1), strict=True)
    moved = torch.cat([views.augmentation(part, generator(5, "view", 1, number)) for part, number in halves])
    assert not moved.allclose(plain)
    for place, images in enumerate((plain, plain.flip(-1), moved, moved.flip(-1))):
        assert (found[place] - halve(images)).abs().max() < 1e-5


def test_encoding_does_not_depend_on_the_precision_of_the_training(real):
    convolution = nn.Conv2d(3, 4, 2, 2).requires_grad_(False)
    expected = torch.cat(list(encode_views(convolution, real, LatentViews(), CPU)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.cat(list(encode_views(convolution, real, LatentViews(), CPU))).equal(expected)


def cache(folder, revision="images", autoencoder="weights", views=None):
    return LatentCache(folder, revision, autoencoder, views or LatentViews(), (COUNT, 3, 4, 4), 8)


def parts_of(real, some=None):
    return encode_views(halve, real, LatentViews(), CPU, some)


def names(folder):
    return sorted(path.suffix for path in folder.iterdir())


def test_the_cache_holds_what_encoding_gives_and_is_not_encoded_again(real, tmp_path):
    expected = torch.cat(list(parts_of(real)))
    assert cache(tmp_path / "a").load(partial(parts_of, real)).equal(expected)
    assert names(tmp_path / "a") == [".bin", ".json"]
    mapped = cache(tmp_path / "a").load(iter(()))
    assert mapped.equal(expected)
    mapped.zero_()  # of this process alone
    assert cache(tmp_path / "a").load(iter(())).equal(expected)


@pytest.mark.parametrize("of", [2, 3, 9])
def test_parts_end_in_the_file_of_one_process(real, tmp_path, of):
    """Eight batches, whose altered views are drawn by view and batch."""
    views = LatentViews(2, AffineViews(shift=0.2), mirror=True, seed=5)
    encode = partial(encode_views, halve, real, views, CPU)

    def entry(folder):
        return LatentCache(folder, "images", "weights", views, (4 * COUNT, 3, 4, 4), 8)

    expected = entry(tmp_path / "alone").load(encode)
    found = [entry(tmp_path / "parts").load_part(encode, NthPart(number, of)) for number in range(of, 0, -1)]
    assert next(latents for latents in found if latents is not None).equal(expected)
    assert sum(latents is None for latents in found) >= min(of, 8) - 1
    both = [sorted((tmp_path / name).iterdir()) for name in ("alone", "parts")]
    assert [path.name for path in both[0]] == [path.name for path in both[1]]
    assert [path.read_bytes() for path in both[0]] == [path.read_bytes() for path in both[1]]


def test_other_images_weights_or_views_have_their_own_entry(tmp_path):
    moved = AffineViews(shift=0.1)
    entries = [
        cache(tmp_path),
        cache(tmp_path, revision="edited images"),
        cache(tmp_path, autoencoder="other weights"),
        *(cache(tmp_path, views=views) for views in (
            LatentViews(mirror=True), LatentViews(2, moved), LatentViews(2, moved, seed=1),
            LatentViews(2, AffineViews(shift=0.2)),
        )),
    ]  # fmt: skip
    assert len({entry.data for entry in entries}) == len(entries)
    # What has no effect on the latents is no reason to encode again.
    assert cache(tmp_path, views=LatentViews(1, moved, seed=3)).key == cache(tmp_path).key


@pytest.mark.parametrize("damage", ["truncated data", "no data", "broken index"])
def test_a_damaged_cache_is_built_again(real, tmp_path, damage):
    expected = cache(tmp_path).load(partial(parts_of, real)).clone()
    data, index = next(tmp_path.glob("*.bin")), next(tmp_path.glob("*.json"))
    if damage == "truncated data":
        data.write_bytes(data.read_bytes()[:-4])
    elif damage == "no data":
        data.unlink()
    else:
        index.write_text("{")
    with pytest.warns(UserWarning, match=r"the cache .*\.bin is damaged .* it is built again"):
        assert cache(tmp_path).load(partial(parts_of, real)).equal(expected)
    assert names(tmp_path) == [".bin", ".json"]


def test_nothing_half_written_stays(real, tmp_path):
    def broken():
        yield next(parts_of(real))
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache(tmp_path).load(lambda some: broken())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*latents-8px-.*\.bin: File too large"):
            cache(tmp_path).load(partial(parts_of, real))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"model.cache_dir='.*/file' cannot be created \(File exists\)"):
        cache(tmp_path / "file").load(partial(parts_of, real))


def encode_slowly(real, folder, log, sums):
    """Run in a process of its own, noting each part that is encoded."""
    torch.set_num_threads(1)

    def parts():
        for part in parts_of(real):
            with open(log, "a") as file:
                file.write("part\n")
            time.sleep(0.2)
            yield part

    sums.put(float(cache(folder).load(lambda some: parts()).double().sum()))


def test_two_processes_at_once_encode_once(real, tmp_path):
    processes, log = multiprocessing.get_context("fork"), tmp_path / "log"
    sums = processes.Queue()
    both = [processes.Process(target=encode_slowly, args=(real, tmp_path / "c", log, sums)) for _ in range(2)]
    for process in both:
        process.start()
    found = [sums.get(timeout=60) for _ in both]
    for process in both:
        process.join()
    assert found == [float(torch.cat(list(parts_of(real))).double().sum())] * 2
    assert log.read_text().split() == ["part"] * 2
    assert names(tmp_path / "c") == [".bin", ".json"]


def test_fingerprint_of_an_autoencoder(tmp_path):
    def build(kind=AutoencoderKL, **config):
        with seeded(0, "autoencoder"):
            return tiny_autoencoder(kind, **config)

    first = build()
    known = fingerprint(first)
    first.save_pretrained(tmp_path)
    assert fingerprint(AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False)) == known
    assert fingerprint(build(scaling_factor=0.5)) != known
    assert fingerprint(build(AutoencoderTiny)) != known
    with torch.no_grad():
        next(first.parameters()).flatten()[0] += 1e-3
    assert fingerprint(first) != known
