"""Merging sets of sub-tasks: one part is the identity, rows and decoders find their places, the rest is refused."""

from dataclasses import replace

import pytest
import torch
from tiny_set import classes_of, full_set, random_images

from ldd.artefact.classes import of_classes
from ldd.artefact.set import DistilledSet
from ldd.errors import UserError
from ldd.federation import merge
from ldd.images import ClassInfo

TASK = classes_of(["a", "b", "c", "d", "e"])
PRIOR = {"class_path": "ldd.priors.PixelPrior", "image_size": 8, "floats": 7, "bytes": 28, "sha256": "0" * 64}


def part(wnids, seed, **changes):
    """Two images a class; every code tensor holds the number of its row, times ten plus the sub-task."""
    labels = torch.arange(len(wnids)).repeat_interleave(2)
    rows = torch.arange(len(labels)).float()
    settings = {
        "codes": {"latents": (rows * 10 + seed)[:, None].expand(-1, 4), "log_variance": rows[:, None] - seed},
        "decoder": {"0.weight": torch.full((2, 2), float(seed))},
        "weights": rows + seed,
        "seed": seed,
        "stages": {"distil": {"seconds": 10.0 + seed, "peak_memory_mib": 100.0 - seed}},
        "licences": {"prior": "MIT", "data": "CC0"},
        "seen_networks": [f"ldd.networks.Net{seed}"],
        "prior": PRIOR,
    }
    return DistilledSet.from_images(
        random_images(len(labels), seed=seed), labels, classes_of(wnids), **(settings | changes)
    )


@pytest.fixture
def parts():
    """Blocks that are not contiguous, the second's classes out of order."""
    return [part(["a", "d"], 1), part(["e", "b", "c"], 2)]


def test_one_part_is_the_identity(tmp_path):
    """Every file byte for byte, soft labels, codes and decoder included."""
    original = full_set()
    original.save(tmp_path / "one")
    merged = merge([DistilledSet.load(tmp_path / "one")], original.classes)
    merged.save(tmp_path / "other")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "other").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_each_row_finds_its_place(parts):
    merged = merge(parts, TASK, config={"model": 1}, test_split_fingerprint="whole")
    assert merged.classes == TASK
    assert merged.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for label, (number, own) in enumerate([(0, 0), (1, 1), (1, 2), (0, 1), (1, 0)]):
        mine, theirs = merged.labels == label, parts[number].labels == own
        assert torch.equal(merged.images[mine], parts[number].images[theirs])
        assert torch.equal(merged.weights[mine], parts[number].weights[theirs])
        for name in ("latents", "log_variance"):
            assert torch.equal(merged.codes[name][mine], parts[number].codes[name][theirs])
    assert merged.decoder.keys() == {"0.0.weight", "1.0.weight"}
    assert merged.decoder["1.0.weight"].eq(2).all()


def test_manifest(parts, tmp_path):
    merged = DistilledSet.load(
        merge(parts, TASK, config={"model": 1}, test_split_fingerprint="whole").save(tmp_path / "set")
    )
    manifest = merged.manifest
    assert manifest["config"] == {"model": 1}
    assert manifest["test_split_fingerprint"] == "whole"
    assert manifest["seen_networks"] == ["ldd.networks.Net1", "ldd.networks.Net2"]
    assert manifest["licences"] == {"prior": "MIT", "data": "CC0"}
    assert manifest["ledger"]["stages"] == {"distil": {"seconds": 23.0, "peak_memory_mib": 99.0}}
    assert [found["classes"] for found in manifest["subtasks"]] == [["a", "d"], ["e", "b", "c"]]
    assert [found["seed"] for found in manifest["subtasks"]] == [1, 2]
    assert merged.storage.decoder.floats == 8, "both decoders are charged"
    assert merged.storage.generator.floats == 7, "the shared frozen prior is charged once"


def test_a_single_part_in_another_order():
    """Rows and the columns of soft labels follow the task's order."""
    soft = torch.tensor([[0.7, 0.2, 0.1]] * 2 + [[0.1, 0.8, 0.1]] * 2 + [[0.3, 0.1, 0.6]] * 2)
    turned = part(["c", "a", "b"], 0, soft_labels=soft, codes=None, decoder=None)
    merged = merge([turned], classes_of(["a", "b", "c"]))
    assert merged.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(merged.images, turned.images[[2, 3, 4, 5, 0, 1]])
    assert torch.equal(merged.soft_labels[0], torch.tensor([0.8, 0.1, 0.1]))
    assert torch.equal(merged.soft_labels[4], torch.tensor([0.2, 0.1, 0.7]))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (part(["e", "b", "a"], 2), r"a \(sub-tasks 0, 1\): in more than one sub-task"),
        (part(["e", "b"], 2), "c: in none"),
        (part(["e", "b", "c", "x"], 2), "x: not in the task"),
        (part(["e", "b", "c"], 2, mean=(0.1, 0.2, 0.3)), "differ in normalisation"),
        (part(["e", "b", "c"], 2, prior={**PRIOR, "sha256": "1" * 64}), "differ in prior"),
        (
            part(["e", "b", "c"], 2, config={"model": {"prior": {"init_args": {"num_steps": 5}}}}),
            "differ in prior",
        ),
        (part(["e", "b", "c"], 2, codes=None), "differ in codes"),
        (part(["e", "b", "c"], 2, decoder=None), "differ in decoder"),
        (part(["e", "b", "c"], 2, decoder={"0.weight": torch.zeros(3, 2)}), "differ in decoder"),
        (part(["e", "b", "c"], 2, weights=None), "differ in weights"),
        (
            part(["e", "b", "c"], 2, soft_labels=torch.full((6, 3), 1 / 3)),
            "soft labels over their own classes",
        ),
    ],
)
def test_what_does_not_belong_together(parts, second, message):
    with pytest.raises(UserError, match=message):
        merge([parts[0], second], TASK)


def test_other_image_sizes(parts):
    small = parts[1]
    larger = replace(small, images=small.images.repeat_interleave(2, 2).repeat_interleave(2, 3))
    with pytest.raises(UserError, match="differ in images: 8 px and 16 px"):
        merge([parts[0], larger], TASK)


def test_nothing_to_merge():
    with pytest.raises(UserError, match="no sub-task has a set"):
        merge([], [ClassInfo(0, 0, "a", "a")])


def test_one_decoder_is_stored_once(parts):
    same = [replace(found, decoder=dict(parts[0].decoder)) for found in parts]
    merged = merge(same, TASK)
    assert merged.decoder.keys() == {"0.weight"}
    assert merged.manifest.decoders(merged.decoder) == [merged.decoder]
    own = merge(parts, TASK)
    assert [found["0.weight"].unique().item() for found in own.manifest.decoders(own.decoder)] == [1, 2]


def test_some_classes_of_a_part(parts):
    """Rows, weights and codes of the classes that are kept, under their new labels; merged, the others are named."""
    own = of_classes(parts[1], ["c", "e"])
    assert [(info.label, info.wnid) for info in own.classes] == [(0, "c"), (1, "e")]
    assert own.labels.tolist() == [0, 0, 1, 1]
    rows = [4, 5, 0, 1]
    assert torch.equal(own.images, parts[1].images[rows])
    assert torch.equal(own.weights, parts[1].weights[rows])
    assert torch.equal(own.codes["latents"], parts[1].codes["latents"][rows])
    assert own.manifest.ledger.stages == parts[1].manifest.ledger.stages
    assert of_classes(own, ["c", "e"]) is own
    task = classes_of(["a", "c", "d", "e"])
    merged = merge([parts[0], own], task, others=[[], ["b"]])
    assert [subtask.others for subtask in merged.manifest.subtasks] == [(), ("b",)]
    with pytest.raises(UserError, match="no images of z"):
        of_classes(own, ["c", "z"])
    with pytest.raises(UserError, match="a decoder of each sub-task"):
        of_classes(merged, ["a"])
    with pytest.raises(UserError, match="soft labels over classes that would be left out"):
        of_classes(full_set(), [full_set().classes[0].wnid])
