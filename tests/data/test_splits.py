"""The decoded cache: the same pixels, never stale, never half-written, built once by two processes at once."""

import hashlib
import json
import multiprocessing
import resource
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image

from ldd.data import (
    DistillationData,
    FolderSource,
    RealImages,
    Subset,
    UnreadableImage,
    splits as cache_module,
)
from ldd.data.splits import load_split
from ldd.disk import locks, parts, shared as sharing
from ldd.errors import UserError
from ldd.runtime.seeding import generator

COUNT = 12  # training files of each class, of which one is set aside for the selection split


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", COUNT), ("val", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (13, 17, 3), dtype=np.uint8)).save(
                    folder / f"{i:02d}.bmp"
                )
    return str(tmp_path / "images")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def load(root, folder, split="train", size=8, on_error="raise"):
    return load_split(FolderSource(root), split, size, str(folder), on_error)


def same(first, second):
    return (
        first.images.equal(second.images)
        and first.labels.equal(second.labels)
        and (first.keys, first.num_classes) == (second.keys, second.num_classes)
    )


def names(folder):
    return sorted(path.suffix for path in folder.iterdir())


def forbid_reading(monkeypatch):
    def read(self, item):
        raise AssertionError("decoded again")

    monkeypatch.setattr(FolderSource, "read", read)


def break_image(root, key):
    path = Path(root, key)
    path.write_bytes(path.read_bytes()[:60])


def test_the_cache_holds_what_decoding_into_memory_gives_and_is_not_decoded_again(root, folder, monkeypatch):
    expected = {split: load_split(FolderSource(root), split, 8) for split in ("train", "selection", "test")}
    for split, images in expected.items():
        assert same(load(root, folder, split), images)
    assert names(folder) == [".bin"] * 3 + [".json"] * 3
    forbid_reading(monkeypatch)
    for split, images in expected.items():
        assert same(load(root, folder, split), images)


def test_draws_batches_and_selections_from_the_map_are_those_from_memory(root, folder):
    mapped, memory = load(root, folder), load_split(FolderSource(root), "train", 8)
    assert mapped.draw(1, 5, generator(0)).equal(memory.draw(1, 5, generator(0)))
    assert all(map(torch.equal, mapped.batch(9, generator(1)), memory.batch(9, generator(1))))
    part, plain = mapped.select(torch.tensor([20, 1, 2, 15])), memory.images[[1, 2, 15, 20]]
    assert part.images.equal(plain)
    assert part.draw(0, 2, generator(2)).sum(0).equal((plain[:2].float() / 127.5 - 1).sum(0))
    assert part.select(torch.tensor([0, 3])).images.equal(plain[[0, 3]])
    assert part.of_class(1).equal(plain[2:])
    # Selecting gathers nothing: one file, mapped once.
    assert part._store.data_ptr() == mapped.images.data_ptr() == mapped.of_class(0).data_ptr()


def test_the_index_says_what_lies_where(root, folder):
    images = load(root, folder)
    data, index = next(folder.glob("*.bin")), json.loads(next(folder.glob("*.json")).read_text())
    assert index["keys"] == images.keys
    assert (index["counts"], index["classes"], index["image_size"]) == ([COUNT - 1] * 2, ["cat", "dog"], 8)
    flat = torch.frombuffer(bytearray(data.read_bytes()), dtype=torch.uint8)
    assert flat.view(-1, 3, 8, 8).equal(images.images)


def test_writing_into_the_map_leaves_the_file_alone(root, folder):
    images, before = load(root, folder), next(folder.glob("*.bin")).read_bytes()
    images.images.zero_()
    assert next(folder.glob("*.bin")).read_bytes() == before


def test_an_edited_image_another_subset_or_another_size_has_its_own_entry(root, folder):
    first = load(root, folder)
    path = Path(root, first.keys[3])
    length = path.stat().st_size
    Image.new("RGB", (17, 13), (9, 9, 9)).save(path)
    assert path.stat().st_size == length  # bitmaps: only the time of change tells
    edited = load(root, folder)
    assert (edited.images[3] == 9).all()
    assert edited.images[4:].equal(first.images[4:])
    assert load(root, folder, size=9).images.shape[-1] == 9
    swapped = load_split(Subset(FolderSource(root), ["dog", "cat"]), "train", 8, str(folder))
    assert swapped.of_class(0).equal(edited.of_class(1))
    assert len(list(folder.glob("*.bin"))) == 4


def test_a_moved_copy_of_the_data_uses_the_same_cache(root, folder, monkeypatch):
    expected = load(root, folder)
    moved = Path(root).rename(Path(root).with_name("moved"))
    forbid_reading(monkeypatch)
    assert same(load(str(moved), folder), expected)


@pytest.mark.parametrize("damage", ["truncated data", "no data", "broken index", "another index"])
def test_a_damaged_cache_is_built_again_with_a_message(root, folder, damage):
    expected = load_split(FolderSource(root), "train", 8)
    load(root, folder)
    data, index = next(folder.glob("*.bin")), next(folder.glob("*.json"))
    if damage == "truncated data":
        data.write_bytes(data.read_bytes()[:-1])
    elif damage == "no data":
        data.unlink()
    elif damage == "broken index":
        index.write_text(index.read_text()[:-20])
    else:
        index.write_text("{}")
    with pytest.warns(UserWarning, match=r"the cache .*\.bin is damaged \(.*it is built again"):
        assert same(load(root, folder), expected)
    assert names(folder) == [".bin", ".json"]
    assert same(load(root, folder), expected)


def test_a_cache_that_may_only_be_read_is_used(root, folder, monkeypatch):
    expected = load(root, folder)
    for path in [*folder.iterdir(), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setattr(parts, "one_at_a_time", None)  # even root must not try to write
    assert same(load(root, folder), expected)
    folder.chmod(0o755)


def test_a_folder_that_cannot_be_used_is_named(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"cache_dir='.*/file' cannot be created \(File exists\); choose another"
    ):
        load(root, tmp_path / "file")


def test_too_little_disk_space_is_refused_before_anything_is_decoded(root, folder, monkeypatch):
    forbid_reading(monkeypatch)

    monkeypatch.setattr(sharing.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2**20}))
    with pytest.raises(
        UserError, match=r"22 images at 512 px need 16.5 MiB and 1.0 MiB are free; free some space"
    ):
        load(root, folder, size=512)
    assert list(folder.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing_behind_and_the_next_run_succeeds(root, folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*train-32px-.*\.bin: File too large"):
            load(root, folder, size=32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(folder.iterdir()) == []
    assert len(load(root, folder, size=32)) == 2 * (COUNT - 1)


def test_too_little_memory_is_refused_with_the_cache_as_cure(root, monkeypatch):
    monkeypatch.setattr(cache_module, "free_bytes", lambda device: 2**20)
    with pytest.raises(UserError, match=r"22 images at 512 px need 16.5 MiB of memory.*set data\.cache_dir"):
        load_split(FolderSource(root), "train", 512)


@pytest.mark.parametrize("cached", [True, False])
def test_unreadable_images_end_the_run_or_stay_out_with_a_report(root, folder, cached):
    where = str(folder) if cached else None
    whole = load_split(FolderSource(root), "train", 8)
    for place in (2, 14):
        break_image(root, whole.keys[place])
    with pytest.raises(UnreadableImage, match=rf"cannot read image {root}/{whole.keys[2]}: .*on_error: skip"):
        load_split(FolderSource(root), "train", 8, where)
    assert not cached or list(folder.iterdir()) == []
    with pytest.warns(
        UserWarning,
        match=rf"(?s)2 unreadable images are left out.*{whole.keys[2]}: cannot read.*{whole.keys[14]}: ",
    ):
        images = load_split(FolderSource(root), "train", 8, where, "skip")
    rest = [i for i in range(len(whole)) if i not in (2, 14)]
    assert images.images.equal(whole.images[rest])
    assert images.keys == [whole.keys[i] for i in rest]
    assert images.counts == [COUNT - 2, COUNT - 2]
    if cached:  # what was skipped once is still an error for a run that has not chosen to skip
        with pytest.raises(UnreadableImage, match=rf"{whole.keys[2]}: .*json lists them; delete it"):
            load(root, folder)
        with pytest.warns(UserWarning, match="2 unreadable images are left out"):
            assert same(load(root, folder, on_error="skip"), images)


def test_a_class_of_which_nothing_can_be_read_is_an_error(root, folder):
    for path in Path(root, "val", "dog").iterdir():
        break_image(root, path)
    with pytest.raises(
        UserError, match=r"class 'dog' is left without images.*e\.g\. cannot read .*val/dog/00\.bmp"
    ):
        load(root, folder, "test", on_error="skip")
    assert list(folder.iterdir()) == []


def test_a_split_without_images_is_cached_too(tmp_path, folder):
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / split / "cat" / "only.png")
    for _ in range(2):
        assert load(str(tmp_path), folder, "selection").counts == [0]


def test_the_data_module_builds_in_prepare_data_and_maps_in_setup(root, folder, monkeypatch):
    def module():
        return DistillationData(FolderSource, root, image_size=8, cache_dir=str(folder))

    module().prepare_data()
    assert names(folder) == [".bin"] * 3 + [".json"] * 3
    forbid_reading(monkeypatch)
    data = module()
    data.setup()
    assert [len(part) for part in (data.train_images, data.selection_images, data.test_images)] == [22, 2, 6]


def test_without_locks_two_builders_at_once_do_no_harm(root, folder, monkeypatch):
    monkeypatch.setattr(locks, "_lock", lambda descriptor, busy: False)
    expected, found = load_split(FolderSource(root), "train", 8), []
    threads = [Thread(target=lambda: found.append(load(root, folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(same(images, expected) for images in found)
    assert names(folder) == [".bin", ".json"]


def build_slowly(root, folder, log, digests):
    """Run in a process of its own: build or find the cache, noting each file that is decoded."""
    torch.set_num_threads(1)
    plain = FolderSource.read

    def read(self, item):
        with open(log, "a") as file:
            file.write(item.key + "\n")
        time.sleep(0.05)
        return plain(self, item)

    FolderSource.read = read
    digests.put(hashlib.sha256(load(root, folder).images.numpy().tobytes()).hexdigest())


def test_two_processes_at_once_build_once_and_a_killed_one_leaves_no_trace(root, folder, tmp_path):
    processes, log = multiprocessing.get_context("fork"), tmp_path / "log"
    digests = processes.Queue()
    killed, *both = [
        processes.Process(target=build_slowly, args=(root, folder, log, digests), daemon=True)
        for _ in range(3)
    ]
    killed.start()
    while not log.exists():
        assert killed.is_alive()
    killed.kill()
    killed.join()
    assert any(path.suffix == ".tmp" for path in folder.iterdir())
    log.write_text("")
    for process in both:
        process.start()
    found = [digests.get(timeout=60) for _ in both]
    for process in both:
        process.join()
    expected = load_split(FolderSource(root), "train", 8)
    assert found == [hashlib.sha256(expected.images.numpy().tobytes()).hexdigest()] * 2
    assert sorted(log.read_text().split()) == sorted(expected.keys)  # each file decoded once in all
    assert names(folder) == [".bin", ".json"]


def test_real_images_need_no_gap_free_rows():
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 1, 1)
    whole = RealImages(images, torch.tensor([0, 0, 0, 2, 2, 2]), list("abcdef"), 3)
    assert whole.counts == [3, 0, 3]
    part = whole.select(torch.tensor([5, 0, 2]))
    assert (part.counts, part.keys, len(part)) == ([2, 0, 1], ["a", "c", "f"], 3)
    assert part.images[:, 0, 0, 0].tolist() == [0, 2, 5]
    assert part.of_class(0)[:, 0, 0, 0].tolist() == [0, 2]
    assert part.of_class(1).shape == (0, 3, 1, 1)
