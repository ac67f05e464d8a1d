"""DistillationData: splits in memory, draws that follow from a generator, and loaders that count steps."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer
from PIL import Image
from torch.nn.functional import interpolate

import ldd
from ldd.data import DigitsSource, DistillationData, FolderSource, Item, Pruner, RandomPruner
from ldd.data.pictures import fit_to_square
from ldd.data.pruning.table import ScoreFacts, ScoreTable
from ldd.errors import UserError
from ldd.imagenet import tables as imagenet
from ldd.runtime.seeding import generator

SHARED = Path(os.environ.get("LDD_SHARED", "../shared"))
CONFIGS = Path(ldd.__file__).parent.parent / "configs/data"


@pytest.fixture(scope="module")
def digits():
    data = DistillationData(pruner=RandomPruner(0.5))
    data.setup()
    return data


def test_the_spec_is_there_before_any_image_is_read():
    spec = DistillationData().spec
    assert (spec.num_classes, spec.image_size) == (10, 32)
    assert spec.fingerprint == DigitsSource().fingerprint("test")
    assert "CC BY" in spec.licence


def test_splits_are_disjoint_balanced_and_ordered(digits):
    parts = [digits.train_images, digits.selection_images, digits.test_images]
    keys = [key for part in parts for key in part.keys]
    assert len(keys) == len(set(keys)) == 1797
    for part, share in zip(parts, (0.6, 0.1, 0.3), strict=True):
        assert part.images.shape[1:] == (3, 32, 32)
        assert all(abs(count - share * 179.7) <= 5 for count in part.counts)
        assert part.of_class(3).equal(part.images[part.labels == 3])


def test_digits_are_shown_at_32_px(digits):
    source = DigitsSource()
    for i in (0, 500):
        native = source.read(Item(digits.train_images.keys[i], 0)).float()
        expected = interpolate(native[None], size=32, mode="bilinear", align_corners=False, antialias=True)[0]
        assert (digits.train_images.images[i] - expected).abs().max() <= 1  # whole grey levels


def test_pruning_touches_the_core_set_only(digits):
    assert digits.core_set.counts == [count // 2 for count in digits.train_images.counts]
    assert set(digits.core_set.keys) < set(digits.train_images.keys)
    whole = DistillationData()
    whole.setup()
    assert whole.test_images.keys == digits.test_images.keys
    assert whole.core_set is whole.train_images


class NamedPruner(Pruner):
    """Scores the native images, and keeps those with an even number in their name."""

    def score(self, source, items, spec, seed):
        self.sizes = {tuple(source.read(item).shape) for item in items}
        numbers = np.array([float(Path(item.key).stem) for item in items])
        return ScoreTable.build(items, None, spec.classes, ScoreFacts("number"), numbers)

    def keep(self, table):
        numbers = table.rows["number"].to_pylist()
        return torch.tensor([i for i, number in enumerate(numbers) if number % 2 == 0])


def test_pruners_see_readable_images_as_they_are_before_any_resizing(tmp_path):
    for split in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(20):
                Image.new("RGB", (30, 20), (i, label, 0)).save(tmp_path / split / name / f"{i:02d}.png")
    plain = FolderSource(str(tmp_path)).items("train")
    broken = next(item.key for item in plain if item.key.endswith("6.png"))
    (tmp_path / broken).write_bytes(b"broken")
    pruner = NamedPruner()
    data = DistillationData(FolderSource, str(tmp_path), image_size=8, pruner=pruner, on_error="skip")
    with pytest.warns(UserWarning, match="1 unreadable images are left out"):
        data.setup()
    assert pruner.sizes == {(3, 20, 30)}
    even = [item.key for item in plain if int(Path(item.key).stem) % 2 == 0 and item.key != broken]
    assert data.core_set.keys == even
    assert data.core_set.images[:, 0, 0, 0].tolist() == [int(Path(key).stem) for key in even]
    assert data.prune_table.rows["path"].to_pylist() == list(data.train_images.keys)
    assert data.prune_table.rows["number"].to_pylist() == [
        int(Path(key).stem) for key in data.train_images.keys
    ]
    kept = [
        path
        for path, kept in zip(
            *(data.prune_table.rows[name].to_pylist() for name in ("path", "kept")), strict=True
        )
        if kept
    ]
    assert kept == even


def test_setup_twice_is_setup_once(digits):
    before = digits.train_images
    digits.setup("fit")
    assert digits.train_images is before


def test_draws_are_different_images_of_the_class_and_follow_from_the_generator(digits):
    real = digits.train_images
    drawn = real.draw(4, 50, generator(0, "real", 7, 4))
    assert drawn.dtype == torch.float32
    assert drawn.shape == (50, 3, 32, 32)
    assert drawn.min() >= -1
    assert drawn.max() <= 1
    assert drawn.equal(real.draw(4, 50, generator(0, "real", 7, 4)))
    assert not drawn.equal(real.draw(4, 50, generator(0, "real", 8, 4)))
    of_class = real.of_class(4).float() / 127.5 - 1
    places = (drawn[:, None] == of_class[None]).flatten(2).all(2)
    assert places.any(1).all()
    everything = real.draw(4, real.counts[4], generator(0))
    assert everything.sum(0).sub(of_class.sum(0)).abs().max() < 1e-3  # each image once


def test_batches_carry_the_labels_of_their_images(digits):
    images, labels = digits.test_images.batch(40, generator(3))
    assert len(labels.unique()) > 5
    for image, label in zip(images, labels.tolist(), strict=True):
        of_class = digits.test_images.of_class(label).float() / 127.5 - 1
        assert (image == of_class).flatten(1).all(1).any()


def test_asking_for_too_many_images_is_an_error(digits):
    with pytest.raises(
        UserError, match=r"different images \(1000\) is more than the \d+ real images of class 'digit-2'"
    ):
        digits.train_images.draw(2, 1000, generator(0))
    with pytest.raises(UserError, match=r"a batch of 5000 is more than the \d+ images"):
        digits.train_images.batch(5000, generator(0))


def test_selecting_keeps_images_labels_and_keys_together(digits):
    real = digits.train_images
    part = real.select(torch.tensor([900, 3, 400]))
    assert part.keys == [real.keys[i] for i in (3, 400, 900)]
    assert part.images.equal(real.images[[3, 400, 900]])
    assert part.labels.equal(real.labels[[3, 400, 900]])


def test_wrong_settings_are_named():
    with pytest.raises(UserError, match="image_size=0 is not a size"):
        DistillationData(image_size=0)
    with pytest.raises(UserError, match=r"std=\[0\.0, 0\.5, 0\.5\] must be above 0"):
        DistillationData(std=(0.0, 0.5, 0.5))


@pytest.mark.parametrize("shape", [(3, 30, 50), (3, 50, 30), (3, 7, 9)])
def test_the_centre_is_kept_and_proportions_too(shape):
    image = torch.zeros(shape, dtype=torch.uint8)
    image[:, shape[1] // 2 - 2 : (shape[1] + 1) // 2 + 2, shape[2] // 2 - 2 : (shape[2] + 1) // 2 + 2] = 255
    square = fit_to_square(image, 16).float()
    assert square.shape == (3, 16, 16)
    assert square[:, 7:9, 7:9].min() > 200
    assert (square - square.flip(1)).abs().max() <= 2
    assert (square - square.flip(2)).abs().max() <= 2


class Counter(LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.validated_at = [], []

    def training_step(self, batch):
        self.seen.append(int(batch))
        self.optimizers().step()

    def validation_step(self, batch):
        self.validated_at.append(self.global_step)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_one_epoch_is_the_whole_run_and_validation_comes_at_its_end(tmp_path):
    model = Counter()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Trainer(max_steps=7, accelerator="cpu", num_sanity_val_steps=0, default_root_dir=tmp_path, **quiet).fit(
        model, datamodule=DistillationData()
    )
    assert model.seen == list(range(7))
    assert model.validated_at == [7]


@pytest.mark.skipif(not (SHARED / "data/imagenette").is_dir(), reason="no ../shared/data/imagenette")
def test_photographs_from_folders():
    data = DistillationData(
        FolderSource, str(SHARED / "data/imagenette"), subset=["n03888257", "n01440764"], image_size=64
    )
    data.setup()
    assert [info.wnid for info in data.classes] == ["n03888257", "n01440764"]
    for part in (data.train_images, data.selection_images, data.test_images):
        for key, label in zip(part.keys, part.labels.tolist(), strict=True):
            assert data.classes[label].wnid in key
    assert 0.04 < len(data.selection_images) / len(data.train_images) < 0.06
    assert 90 < data.train_images.images.float().mean() < 150  # photographs, not blanks


def parse(*arguments):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DistillationData, "data")
    return parser, parser.parse_args([*arguments])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_fits_and_says_how_to_use_it(path, tmp_path):
    assert re.match(r"# .*\n(#.*\n)*?#   latentdd fit .*--data configs/data/", path.read_text())
    for split in ("train", "val"):
        for wnid in imagenet.named_subsets()["imagenette"]:
            (tmp_path / split / wnid).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(tmp_path / split / wnid / "0.png")
    root = [] if path.stem == "digits" else [f"--data.root={tmp_path}"]
    parser, config = parse(f"--data={path}", *root)
    data = parser.instantiate_classes(config).data
    assert len(data.classes) == 10
    sizes = {"digits": 32, "cifar10": 32, "tiny_imagenet": 64}
    assert data.spec.image_size == sizes.get(path.stem, 128)


@pytest.mark.parametrize(
    ("text", "subset"),
    [
        ("birds", "birds"),
        ("my/list.txt", "my/list.txt"),
        ("[n01440764, n02102040]", ["n01440764", "n02102040"]),
        ("[207, 1]", [207, 1]),
        ("[207, n01440764]", [207, "n01440764"]),
        ("null", None),
    ],
)
def test_every_form_of_a_subset_can_be_given_on_the_command_line(text, subset):
    _, config = parse(f"--data.subset={text}")
    assert config.data.subset == subset
