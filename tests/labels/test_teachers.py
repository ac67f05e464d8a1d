"""Teachers by file, their labels against the network itself, crops that are charged, accuracy against bytes."""

import csv
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_world import NARROW, SPEC, SmallData, protocol_file, small_set
from torch.nn import functional as F
from torchvision.models import get_model

from ldd.artefact.set import DistilledSet
from ldd.artefact.size import Amount
from ldd.artefact.soft_labels import quantise
from ldd.errors import UserError
from ldd.evaluation import ClassifierLabels, FullReal, Labeller, NetworkLabels, Protocol, evaluate
from ldd.evaluation.label_curve import label_curve, write_curve
from ldd.evaluation.records import Records
from ldd.evaluation.request import Request
from ldd.images import Labelled
from ldd.labels.crops import crop_teacher, crop_work
from ldd.networks import ConvNet, Network, ViT
from ldd.runtime.seeding import seeded
from ldd.students.training import Lesson, Outcome, Student, fresh_network

CPU = torch.device("cpu")


@pytest.fixture
def data():
    chosen = SmallData()
    chosen.setup()
    return chosen


@pytest.fixture
def weights(tmp_path):
    """A network of this package's kind, saved."""
    network = fresh_network(NARROW, SPEC, 4, "teacher", 0).eval()
    save_file(network.state_dict(), tmp_path / "teacher.safetensors")
    return network, str(tmp_path / "teacher.safetensors")


def choose(labels, data, counts=(1, 1, 1)):
    labels.check(data)
    return labels.choose(data, counts, 0, CPU)


def test_a_saved_network_labels_as_it_answers(weights, data):
    network, path = weights
    images = data.test_images.images[:5]
    x = (images / 255 - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1)
    expected = (network(x) / 2).softmax(1)
    labeller = choose(NetworkLabels(NARROW, path, temperature=2, precision="float32"), data)
    assert (labeller(images) - expected).abs().max() < 1e-6
    eight = choose(NetworkLabels(NARROW, path, temperature=2, precision="int8"), data)
    assert torch.equal(eight(images), quantise(labeller.probabilities(images), None, "int8"))
    assert eight.amount_per_label == Amount(floats=3, bytes=3)
    labelled = eight.label(small_set(2))
    assert labelled.bytes["labels"] == 6 * (8 + 3)
    assert labelled.manifest["labels"]["network"].startswith("sha256:")


def test_a_torchvision_classifier_sees_its_own_size_and_constants(data, tmp_path):
    """Of 3 outputs each class has its own; images are resized from 32 to 48 px and normalised anew."""
    with seeded(0):
        classifier = get_model("squeezenet1_1", weights=None, num_classes=3).eval()
    torch.save(classifier.state_dict(), tmp_path / "own.pt")
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    arguments = {"size": 48, "mean": mean, "std": std, "precision": "float32"}
    labeller = choose(ClassifierLabels("squeezenet1_1", str(tmp_path / "own.pt"), **arguments), data)
    images = data.test_images.images[:3]
    resized = F.interpolate(images / 255, size=(48, 48), mode="bilinear", antialias=True)
    x = (resized - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert (labeller(images) - classifier(x).softmax(1)).abs().max() < 1e-5


def test_what_is_no_teacher(weights, data, tmp_path):
    _, path = weights
    with pytest.raises(UserError, match=r"labels.weights \(nowhere\) is not a file"):
        NetworkLabels(NARROW, "nowhere")
    with pytest.raises(UserError, match=r"labels.weights .* are not of ldd.networks.convnet.ConvNet"):
        choose(NetworkLabels(partial(ConvNet, width=5, depth=2), path), data)
    with pytest.raises(UserError, match=r"labels.top_k \(4\) is more than the 3 classes"):
        choose(NetworkLabels(NARROW, path, top_k=4), data)
    with pytest.raises(UserError, match=r"labels.temperature \(0\)"):
        NetworkLabels(NARROW, path, temperature=0)
    with pytest.raises(UserError, match=r"labels.top_k \(0\)"):
        NetworkLabels(NARROW, path, top_k=0)
    with pytest.raises(UserError, match="not a classification model of torchvision"):
        ClassifierLabels("resnet17", path)


def test_labels_of_every_crop_are_charged(weights, data, tmp_path):
    """Four epochs of six images, three numbers in eight bits for each crop, and the hard labels."""
    network, _ = weights
    labeller = Labeller(network.requires_grad_(False), SPEC, precision="int8")
    protocol = Protocol.load(protocol_file(tmp_path, labels="teacher", temperature=4))
    settings = {"labeller": labeller, "num_workers": 1, "progress": False, "baselines": [FullReal()]}
    report = evaluate(small_set(2), None, data, protocol, 1, **settings)
    labels = report.facts["cost"]["distilled"]["storage"]["parts"]["labels"]
    assert labels == {"floats": 4 * 6 * 3, "bytes": 6 * 8 + 4 * 6 * 3}
    full = report.facts["cost"]["full_real"]["storage"]["parts"]["labels"]
    assert full["bytes"] == 24 * 8 + 2 * 24 * 3


def test_accuracy_against_bytes(weights, data, tmp_path):
    network, _ = weights
    labeller = Labeller(network.requires_grad_(False), SPEC)
    protocol = Protocol.load(protocol_file(tmp_path, epochs=2))
    points = label_curve(
        small_set(2), labeller, Request(data, protocol, repeats=1, num_workers=1, progress=False)
    )
    kept = ("top 1", "top 2", "all")
    assert {p.form for p in points} == {
        "hard",
        *(f"{p} {k}" for p in ("int8", "float16", "float32") for k in kept),
    }
    found = {p.form: p for p in points}
    assert found["hard"].label_bytes == 6 * 8
    assert found["int8 all"].label_bytes == 6 * (8 + 3)
    assert found["int8 top 1"].label_bytes == 6 * (8 + 1 + 2)
    assert found["float16 top 2"].label_bytes == 6 * (8 + 2 * (2 + 2))
    assert found["float32 all"].bytes == 6 * (3 * 32 * 32 + 8 + 12)
    assert [p.label_bytes for p in points] == sorted(p.label_bytes for p in points)
    half = replace(labeller, precision="float16").label(small_set(2))
    report = evaluate(half, None, data, protocol, 1, baselines=[], num_workers=1, progress=False)
    assert found["float16 all"].score.mean == report.scores()["distilled"]["narrow"].mean
    write_curve(points, tmp_path / "curve", "a title")
    rows = list(csv.DictReader((tmp_path / "curve" / "label_curve.csv").open(newline="")))
    assert [row["form"] for row in rows] == [p.form for p in points]
    assert Image.open(tmp_path / "curve" / "label_curve.png").width > 500


@pytest.fixture
def own_classifier(tmp_path):
    """Weights of a classifier of torchvision with three outputs."""
    with seeded(0):
        classifier = get_model("squeezenet1_1", weights=None, num_classes=3)
    torch.save(classifier.state_dict(), tmp_path / "own.pt")
    return partial(ClassifierLabels, "squeezenet1_1", str(tmp_path / "own.pt"))


@pytest.mark.parametrize("name", ["size", "mean", "std"])
def test_other_sight_of_the_images_is_another_teacher(own_classifier, data, tmp_path, name):
    one = choose(own_classifier(), data)
    other = choose(own_classifier(**{name: 48 if name == "size" else (0.4, 0.5, 0.6)}), data)
    assert not torch.equal(*(t.probabilities(data.test_images.images[:2]) for t in (one, other)))
    one.label(small_set(2)).save(tmp_path / "set")
    was = DistilledSet.load(tmp_path / "set").manifest.labels
    one.check_same(was, "the set has")
    with pytest.raises(UserError, match=rf"other labels than the set has \({name}: "):
        other.check_same(was, "the set has")
    older = {fact: value for fact, value in was.items() if fact not in ("size", "mean", "std")}
    one.check_same(older, "the set has")
    other.check_same(older, "the set has")
    with pytest.raises(UserError, match="network: None"):
        one.check_same({}, "the set has")


def test_another_sight_is_not_resumed_and_finds_no_student(own_classifier, data, tmp_path):
    protocol = Protocol.load(protocol_file(tmp_path, labels="teacher"))
    one, other = (choose(own_classifier(size=size), data) for size in (None, 48))
    keys = {
        crop_work(tmp_path / "crops", small_set(2), labeller, protocol, 0, CPU, lambda seconds: {}).key
        for labeller in (one, other)
    }
    assert len(keys) == 2
    test = Labelled(data.test_images.images, data.test_images.labels)
    found = [
        Records(
            tmp_path / "evaluated",
            Lesson(SPEC, protocol, {"narrow": NARROW}, 0, crop_teacher(labeller, protocol)),
            {("distilled", 0): test},
            test,
            CPU,
        )
        for labeller in (one, other, choose(own_classifier(), data))
    ]
    student = Student("distilled", "narrow", 0, 2)
    found[0].add(student, Outcome(0.25, 1.0))
    assert [bool(records.find([student])) for records in found] == [True, False, True]


@pytest.mark.parametrize(
    "made",
    [
        lambda n: partial(ViT, dim=8, depth=1, heads=n),
        lambda n: (
            lambda classes, size: WithActivation(classes, size, [torch.nn.ReLU, torch.nn.GELU][n - 1]())
        ),
    ],
    ids=["heads", "layers without weights"],
)
def test_other_networks_of_the_same_weights_are_other_teachers(made, data, tmp_path):
    save_file(fresh_network(made(1), SPEC, 4, "teacher", 0).state_dict(), tmp_path / "t.safetensors")
    one, again, other = (
        choose(NetworkLabels(made(n), str(tmp_path / "t.safetensors")), data) for n in (1, 1, 2)
    )
    again.check_same(one.facts, "the set has")
    with pytest.raises(UserError, match=r"the set has \(architecture: "):
        other.check_same(one.facts, "the set has")
    other.check_same({k: v for k, v in one.facts.items() if k != "architecture"}, "the set has")


class WithActivation(Network):
    def __init__(self, num_classes, image_size, activation):
        super().__init__()
        self.inner, self.activation = NARROW(num_classes, image_size), activation

    def embed(self, x):
        return self.activation(self.inner.embed(x))

    def forward(self, x):
        return self.inner.classifier(self.embed(x))


def test_a_classifier_of_torchvision_counts_as_seen_by_its_architecture(own_classifier, data, weights):
    labelled = choose(own_classifier(), data).label(small_set(2))
    assert labelled.manifest.seen_networks == [
        *small_set(2).manifest.seen_networks,
        "torchvision.models.squeezenet1_1",
    ]
    own = choose(NetworkLabels(NARROW, weights[1]), data).label(small_set(2))
    assert "ldd.networks.convnet.ConvNet" in own.manifest.seen_networks
