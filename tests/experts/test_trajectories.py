import dataclasses
import json

import pytest
import torch
from torch import nn

from ldd.data.real import RealImages
from ldd.errors import UserError
from ldd.experts.trajectories import (
    ExpertSetting,
    ExpertTraining,
    MissingExperts,
    Trajectories,
    find_trajectories,
)
from ldd.images import ClassInfo, DataSpec
from ldd.networks import ConvNet, ViT
from ldd.runtime.seeding import generator

TRAINING = ExpertTraining(
    epochs=3,
    batch_size=8,
    learning_rate=0.01,
    momentum=0.0,
    weight_decay=0.0,
    augmentation=("flip", "crop"),
    seed=0,
)


def setting_of(
    image_size=32, wnids=("a", "b"), keys=("x", "y", "z"), labels=(0, 0, 1), mean=0.5, model=None, **network
) -> ExpertSetting:
    classes = [ClassInfo(i, i, wnid, wnid) for i, wnid in enumerate(wnids)]
    spec = DataSpec(classes, image_size, (mean,) * 3, (0.2,) * 3, "test split")
    model = model or ConvNet(len(classes), image_size, **{"depth": 1, "width": 2} | network)
    images = torch.zeros(len(keys), 3, 1, 1, dtype=torch.uint8)
    core_set = RealImages(images, torch.tensor(labels), keys, len(classes))
    return ExpertSetting.of(spec, core_set, model)


SETTING = setting_of()


def write(root, setting=SETTING, training=TRAINING, num_experts=2, skip=()) -> Trajectories:
    recording = Trajectories.under(root, setting, training, num_experts)
    recording.write_index()
    for expert in set(range(num_experts)) - set(skip):
        recording.write(expert, *weights_of(expert, setting, training))
    return recording


def weights_of(expert, setting=SETTING, training=TRAINING):
    random = generator(0, "weights", expert)
    snapshots = torch.randn(training.epochs + 1, setting.num_parameters, generator=random)
    return snapshots, torch.rand(training.epochs, generator=random)


def test_what_is_written_is_read(tmp_path):
    recording = write(tmp_path)
    again = Trajectories.open(recording.folder)
    assert (again.setting, again.training, again.num_experts) == (SETTING, TRAINING, 2)
    for expert in (0, 1):
        snapshots, losses = weights_of(expert)
        assert torch.equal(again.read(expert, range(4)), snapshots)
        assert torch.equal(again.read(expert, [3, 1]), snapshots[[3, 1]])
        assert torch.equal(again.losses(expert), losses)
    assert recording.path(0).stat().st_size - recording.bytes_per_expert < 1000  # the header


def test_what_is_read_is_in_memory_of_its_own(tmp_path):
    recording = write(tmp_path)
    before = recording.read(0, [0])
    kept = before.clone()
    recording.write(0, *weights_of(7))
    with open(recording.path(0), "r+b") as file:
        file.write(b"\0" * recording.path(0).stat().st_size)
    assert torch.equal(before, kept)


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 64},
        {"wnids": ("a", "c")},
        {"keys": ("x", "y", "w")},
        {"labels": (0, 1, 1)},
        {"keys": ("x", "z"), "labels": (0, 1)},
        {"mean": 0.4},
        {"width": 3},
        {"norm": "none"},
        {"norm": "batch"},
    ],
    ids=str,
)
def test_other_settings_never_collide(tmp_path, change):
    other = setting_of(**change)
    assert SETTING.differences(other)
    assert write(tmp_path).folder != write(tmp_path, other).folder


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ExpertTraining)])
def test_other_training_never_collides(tmp_path, field):
    value = getattr(TRAINING, field)
    other = dataclasses.replace(TRAINING, **{field: () if isinstance(value, tuple) else value + 1})
    folders = {Trajectories.under(tmp_path, SETTING, training, 1).folder for training in (TRAINING, other)}
    assert len(folders) == 2


def test_the_number_of_experts_may_grow(tmp_path):
    folder = write(tmp_path, num_experts=2).folder
    assert write(tmp_path, num_experts=3).folder == folder
    assert Trajectories.under(tmp_path, SETTING, TRAINING, 1).num_experts == 3


def test_what_differs_is_said_with_both_values():
    assert SETTING.differences(setting_of()) == []
    assert SETTING.differences(setting_of(image_size=64)) == ["image_size 32 (this run: 64)"]
    assert SETTING.differences(setting_of(wnids=("a", "c"))) == ["the classes [a, b] (this run: [a, c])"]
    many = setting_of(wnids=("a", "b", "c", "d", "e"))
    assert SETTING.differences(many) == ["the classes [a, b] (this run: [a, b, c and 2 more])"]
    (pruned,) = SETTING.differences(setting_of(keys=("x", "z"), labels=(0, 1)))
    assert pruned.startswith("a core-set of 3 images (this run: 2;")
    (other_images,) = SETTING.differences(setting_of(keys=("x", "y", "w")))
    assert other_images.startswith("a core-set of 3 images (this run: 3 other ones;")
    assert "pruner and data.seed must be the same" in other_images
    (normalised,) = SETTING.differences(setting_of(mean=0.4))
    assert normalised.startswith("mean [0.5, 0.5, 0.5], std")
    assert "(this run: [0.4, 0.4, 0.4]" in normalised
    (wider,) = SETTING.differences(setting_of(width=3))
    assert (
        "ConvNet with 1,086 parameters (this run: ldd.networks.convnet.ConvNet with 1,628 parameters)"
        in wider
    )
    (norm,) = SETTING.differences(setting_of(norm="batch"))
    assert "1,086 parameters and (1): GroupNorm(2, 2, eps=1e-05" in norm
    assert "1,086 parameters and (1): BatchNorm2d(2" in norm


class Powered(nn.Sequential):
    """A network with a plain attribute."""

    def __init__(self, exponent):
        super().__init__(nn.Linear(2, 2))
        self.exponent = exponent


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (lambda n: ViT(2, 32, dim=8, depth=1, heads=n), "blocks.1: heads="),
        (Powered, "Powered: exponent="),
        (lambda n: nn.MultiheadAttention(4, n), "num_heads="),
    ],
    ids=["ViT", "own", "torch"],
)
def test_networks_of_other_settings_never_share_experts(tmp_path, made, shown):
    one, other = (setting_of(model=made(number)) for number in (1, 2))
    (difference,) = one.differences(other)
    assert f"{shown}1" in difference.partition("(this run")[0]
    assert f"{shown}2" in difference.partition("(this run")[2]
    folder = write(tmp_path, one).folder
    with pytest.raises(MissingExperts, match="does not fit this run"):
        find_trajectories(str(tmp_path), other)
    assert write(tmp_path, other).folder != folder
    assert find_trajectories(str(tmp_path), one).folder == folder


def test_recordings_from_before_settings_were_kept_fit(tmp_path):
    one, other = (setting_of(model=ViT(2, 32, dim=8, depth=1, heads=heads)) for heads in (4, 8))
    folder = write(tmp_path, one).folder
    path = folder / "index.json"
    index = json.loads(path.read_text())
    del index["setting"]["settings"]
    path.write_text(json.dumps(index))
    for run in (one, other):
        assert find_trajectories(str(tmp_path), run).folder == folder
        assert Trajectories.under(tmp_path, run, TRAINING, 2).folder == folder


class TestFind:
    def test_a_recording_or_the_folder_above(self, tmp_path):
        folder = write(tmp_path).folder
        write(tmp_path, setting_of(image_size=64))
        assert find_trajectories(str(folder), SETTING).folder == folder
        assert find_trajectories(str(tmp_path), SETTING).folder == folder

    def test_nothing_there(self, tmp_path):
        command = "latentdd experts --config configs/experts/digits.yaml"
        with pytest.raises(
            UserError, match=f"objective.trajectories .*gone\\) does not exist; record some by `{command}`"
        ):
            find_trajectories(str(tmp_path / "gone"), SETTING)
        with pytest.raises(UserError, match=f"holds no expert trajectories; record some by `{command}`"):
            find_trajectories(str(tmp_path), SETTING)

    def test_none_fits(self, tmp_path):
        write(tmp_path)
        write(tmp_path, setting_of(width=3))
        with pytest.raises(UserError, match="does not fit this run: convnet-32px-") as error:
            find_trajectories(str(tmp_path), setting_of(image_size=64))
        assert str(error.value).count("was recorded for image_size 32 (this run: 64)") == 2

    def test_several_fit(self, tmp_path):
        write(tmp_path)
        write(tmp_path, training=dataclasses.replace(TRAINING, seed=1))
        with pytest.raises(UserError, match=r"holds several that fit; name one of: .*seed 0\); .*seed 1\)"):
            find_trajectories(str(tmp_path), SETTING)

    def test_too_short_ones_are_no_choice(self, tmp_path):
        """Of several that fit the long enough are meant; where none is, the longest says what is missing."""
        write(tmp_path, training=dataclasses.replace(TRAINING, epochs=1))
        folder = write(tmp_path, training=dataclasses.replace(TRAINING, epochs=3)).folder
        assert find_trajectories(str(tmp_path), SETTING, epochs=2).folder == folder
        with pytest.raises(
            MissingExperts, match=rf"{folder.name}\) has 3 epochs, but this run reads epoch 4"
        ):
            find_trajectories(str(tmp_path), SETTING, epochs=4)
        with pytest.raises(UserError, match="holds several that fit") as several:
            find_trajectories(str(tmp_path), SETTING, epochs=1)
        assert not isinstance(several.value, MissingExperts)

    def test_unfinished(self, tmp_path):
        write(tmp_path, num_experts=4, skip=(2,))
        with pytest.raises(
            UserError, match=r"holds the first 2 of 4 experts; .* or set objective.num_experts to 2"
        ):
            find_trajectories(str(tmp_path), SETTING)
        assert find_trajectories(str(tmp_path), SETTING, num_experts=2).num_experts == 2

    @pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 1}'])
    def test_damaged_index(self, tmp_path, text):
        (write(tmp_path).folder / "index.json").write_text(text)
        with pytest.raises(UserError, match=r"index.json.* delete .* and record the experts anew"):
            find_trajectories(str(tmp_path), SETTING)

    def test_index_of_another_version(self, tmp_path):
        path = write(tmp_path).folder / "index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 9}))
        with pytest.raises(UserError, match="format_version 9, this version of latentdd reads 1"):
            find_trajectories(str(tmp_path), SETTING)


def test_damaged_expert(tmp_path):
    recording = write(tmp_path)
    path = recording.path(1)
    assert recording.is_whole(1)
    path.write_bytes(path.read_bytes()[:-100])
    assert not recording.is_whole(1)
    with pytest.raises(UserError, match=r"expert-00001.safetensors is missing or damaged"):
        recording.read(1, [0])
    assert not recording.is_whole(2)
    with pytest.raises(UserError, match=r"expert-00002.safetensors is missing or damaged"):
        recording.read(2, [0])
