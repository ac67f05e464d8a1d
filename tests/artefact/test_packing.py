"""Packed sets: grids cut and grown as torch does by hand, what students get, what exports and imports say."""

import json

import pytest
import torch
from tiny_set import random_images, tiny_set
from torch.nn import functional as F

from ldd.artefact.exporters.imagefolder import write_imagefolder
from ldd.artefact.exporters.pt import write_pt
from ldd.artefact.identity import identity
from ldd.artefact.packing import grow, pack, shrink, unpack
from ldd.artefact.set import DistilledSet
from ldd.errors import UserError
from ldd.evaluation.baselines.stored import StoredSet
from ldd.importers import read_set


@pytest.fixture
def packed():
    return tiny_set(images_per_class=2, size=16, packing=2, weights=torch.arange(6.0))


def test_grids_are_row_by_row():
    small = random_images(2 * 9, 5)
    images = pack(small, 3)
    assert images.shape == (2, 3, 15, 15)
    for number in range(18):
        row, column = number % 9 // 3, number % 3
        part = images[number // 9, :, 5 * row : 5 * row + 5, 5 * column : 5 * column + 5]
        assert torch.equal(part, small[number])


def test_students_see_each_part_grown():
    images = random_images(2, 16)
    seen = unpack(images, 4)
    assert seen.shape == (32, 3, 16, 16)
    part = images[1, :, 8:12, 4:8].float()[None]  # third row, second column of the second grid
    wanted = F.interpolate(part, size=(16, 16), mode="bilinear", align_corners=False)[0]
    assert (seen[16 + 9].float() - wanted).abs().max() <= 0.5 + 1e-4
    floats = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    by_hand = torch.stack([floats[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).mean(0)
    assert (shrink(floats, 2) - by_hand).abs().max() < 1e-12
    assert grow(shrink(floats, 2), 2).shape == floats.shape


def test_a_packed_set_tells_so_and_gives_its_parts(packed, tmp_path):
    loaded = DistilledSet.load(packed.save(tmp_path / "set"))
    assert (loaded.packing, loaded.images_per_class, len(loaded.images)) == (2, 2, 6)
    assert "packed 2 x 2" in repr(loaded)
    seen = loaded.unpacked()
    assert (seen.packing, seen.counts) == (1, [8, 8, 8])
    assert torch.equal(seen.labels, loaded.labels.repeat_interleave(4))
    assert torch.equal(seen.weights[:8], torch.tensor([0.0] * 4 + [1.0] * 4))
    student = StoredSet("distilled", loaded)
    assert torch.equal(student.training.images, unpack(packed.images, 2))
    assert torch.equal(student.training.labels, seen.labels)
    assert student.size(0, None).images == 24
    assert student.storage(student.training, None).images.bytes == packed.images.nbytes
    data = loaded.as_dataset()
    assert len(data) == 24
    assert (data[5][0] - (seen.images[5].float() / 127.5 - 1)).abs().max() < 1e-6
    assert identity(loaded) != identity(tiny_set(images_per_class=2, size=16, weights=torch.arange(6.0)))
    assert tiny_set().unpacked().packing == 1


@pytest.mark.parametrize("write", [write_pt, write_imagefolder])
def test_exports_say_so_and_come_back_packed(packed, write, tmp_path):
    write(packed, tmp_path / "out")
    assert {row["packing"] for row in json.loads((tmp_path / "out" / "classes.json").read_text())} == {2}
    place = tmp_path / "out" / ("distilled.pt" if write is write_pt else "")
    back = read_set(place)
    assert back.packing == 2
    sums, own = (made.unpacked().images.sum((1, 2, 3)).sort().values for made in (back, packed))
    assert torch.equal(sums, own)


def test_what_cannot_be_packed(packed):
    with pytest.raises(UserError, match=r"packing \(3\): images of 16 px cannot be cut into 3 x 3"):
        tiny_set(size=16, packing=3)
    with pytest.raises(UserError, match="soft_labels belong to images"):
        tiny_set(size=16, packing=2, soft_labels=torch.full((6, 3), 1 / 3))
    with pytest.raises(UserError, match="labelling takes the images of a set one by one"):
        packed.refuse_packed("labelling")
