"""A cache that is decoded in parts, by commands or by the ranks of a run: the bytes of one process."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
from PIL import Image
from processes import Started, latentdd, run_ranks
from slow_source import SlowFolder

from ldd.commands import prepare
from ldd.data import DistillationData, FolderSource, UnreadableImage
from ldd.disk.files import sha256
from ldd.disk.parts import JOIN, NthPart
from ldd.errors import UserError

COUNT = 9  # training files of each class


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", COUNT), ("val", 2)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(rng.integers(0, 255, (9, 8, 3), dtype=np.uint8))
                image.save(root / split / name / f"{number:02d}.png")
    broken = root / "train" / "dog" / "01.png"  # in the middle
    broken.write_bytes(broken.read_bytes()[:60])
    return root


def data(root, folder, on_error="skip", source=FolderSource):
    return DistillationData(source, str(root), image_size=8, cache_dir=str(folder), on_error=on_error)


def files(folder):
    return {path.name: sha256(path) for path in sorted(Path(folder).iterdir())}


@pytest.fixture(scope="module")
def alone(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    with pytest.warns(UserWarning, match="1 unreadable images are left out"):
        data(root, folder).prepare()
    return files(folder)


@pytest.mark.filterwarnings("ignore:1 unreadable")
@pytest.mark.parametrize("of", [2, 5, 40])
def test_parts_leave_the_files_of_one_process(root, alone, tmp_path, of):
    for number in range(of, 0, -1):
        found = data(root, tmp_path).prepare(NthPart(number, of))
        assert number > 1 or len(found) == 3
        assert number < of or not found
    assert files(tmp_path) == alone
    with pytest.warns(UserWarning, match=r"1 unreadable images are left out .*\n.*train/dog/01\.png"):
        assert len(data(root, tmp_path).prepare(JOIN)) == 3


def test_an_unreadable_image_ends_its_own_part(root, alone, tmp_path):
    data(root, tmp_path, "raise").prepare(NthPart(1, 2))
    with pytest.raises(UnreadableImage, match=r"train/dog/01\.png"):
        data(root, tmp_path, "raise").prepare(NthPart(2, 2))
    with pytest.warns(UserWarning, match="1 unreadable images"):
        data(root, tmp_path).prepare(NthPart(2, 2))
    assert files(tmp_path) == alone
    with pytest.raises(UnreadableImage, match=r"train/dog/01\.png.*json lists them"):
        data(root, tmp_path, "raise").prepare(JOIN)


def of_rank(root, folder, log):
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", init_method=f"file://{folder}.meeting", rank=rank, world_size=2)
    os.environ.update({"SLOW": "0.05", "READ": f"{log}{rank}"})
    module = data(root, folder, source=SlowFolder)
    module.prepare_data()
    assert not Path(folder).exists()  # one rank alone makes nothing
    dist.barrier()
    module.setup()
    dist.destroy_process_group()
    return len(module.train_images)


@pytest.mark.filterwarnings("ignore:1 unreadable")
def test_two_ranks_share_the_images_and_each_is_read_once(root, alone, tmp_path):
    folder, log = tmp_path / "cache", tmp_path / "read"
    environments = [{"RANK": "0"}, {"RANK": "1"}]
    found = run_ranks(of_rank, str(root), str(folder), str(log), environments=environments)
    assert found == [2 * (COUNT - 1) - 1] * 2  # less those of the selection split, and the broken one
    assert files(folder) == alone
    read = [Path(f"{log}{rank}").read_text().split() for rank in range(2)]
    assert min(map(len, read)) > 5
    assert set(Counter(read[0] + read[1]).values()) == {1}


def command(root, folder, *options):
    plain = ("--data.source", "ldd.data.FolderSource", "--data.root", str(root), "--data.image_size", "8")
    return [*plain, "--data.cache_dir", str(folder), "--data.on_error", "skip", *options]


@pytest.mark.filterwarnings("ignore:1 unreadable")
def test_the_verb_says_what_is_there_and_what_comes_next(root, alone, tmp_path):
    ending = prepare.main("prepare", command(root, tmp_path, "--part", "2/2"))
    assert (ending.made, ending.next) == ([], ())
    ending = prepare.main("prepare", command(root, tmp_path))  # without parts: what is missing
    assert [path.suffix for path in ending.made] == [".bin"] * 3
    assert [*ending.next][-2:] == ["--data.cache_dir", str(tmp_path)]
    assert files(tmp_path) == alone
    with pytest.raises(UserError, match=r"data\.cache_dir \(null\) must name the folder"):
        prepare.main("prepare", ["--part", "1/2"])


def test_a_part_that_cannot_be_is_a_mistake_of_the_user(root, tmp_path):
    for number, (part, words) in enumerate({"5/4": "numbered from 1", "join": "there are no parts"}.items()):
        log = tmp_path / f"log{number}"
        assert (
            Started(latentdd, ["prepare", *command(root, tmp_path / "c", "--part", part)], log).result() == 2
        )
        assert words in log.read_text()
