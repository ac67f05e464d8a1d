"""Checks of images against loops and formulas, and the command that runs them."""

import json
import math
from dataclasses import replace

import numpy
import pytest
import scipy.linalg
import torch
import torchvision
import yaml
from PIL import Image
from small_world import CLASSES, NARROW, SPEC, SmallData, protocol_file, real, small_set, striped
from torch.nn.functional import cross_entropy
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.v2.functional import normalize, resize

from ldd.artefact.set import DistilledSet
from ldd.commands.check import check, data_of_run
from ldd.errors import UserError
from ldd.evaluation import Protocol
from ldd.evaluation.checks.confusion import Confusion, confusion_matrix, confusions
from ldd.evaluation.checks.neighbours import by_pixels, nearest_real
from ldd.evaluation.checks.spectrum import high_frequency_gap
from ldd.evaluation.checks.spread import frechet_distance, spread_of
from ldd.evaluation.features import ClassifierFeatures, pixels, trained_features, trained_network
from ldd.images import Labelled
from ldd.networks.scoring import in_batches
from ldd.runtime.seeding import generator
from ldd.students.training import Lesson, Student
from ldd.students.training_set import TrainingSet

CPU = torch.device("cpu")


def points(n, seed, features=4):
    return torch.randn(n, features, generator=generator(seed, "points"))


def test_nearest_by_a_loop():
    """Of all classes; the usual distance is from one real image to the next of its own class."""
    images, theirs = points(7, 0), points(24, 1)
    labels, truth = torch.tensor([0, 0, 0, 1, 1, 2, 2]), real(8, 1)
    found = nearest_real(images, labels, theirs, truth)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        distances = [(image - other).square().sum().sqrt().item() for other in theirs]
        best = distances.index(min(distances))
        assert int(found.rows[row]) == best
        assert found.distances[row].item() == pytest.approx(min(distances), abs=1e-5)
        assert found.keys[row] == str(best)
        assert bool(found.same_class[row]) == (int(truth.labels[best]) == int(label))
    own = []
    for i in range(24):
        others = [j for j in range(24) if j != i and truth.labels[j] == truth.labels[i]]
        own.append(min((theirs[i] - theirs[j]).norm().item() for j in others))
    assert found.usual == pytest.approx(torch.tensor(own).median().item(), abs=1e-5)


def test_high_frequencies_by_a_sum_over_pixels():
    """The discrete Fourier transform written out, above half the Nyquist frequency, averaged class by class."""
    size, rows = 8, numpy.arange(8)

    def power(images):
        total, count = 0.0, 0
        for image in images.double().numpy().reshape(-1, size, size):
            for u in range(-4, 4):
                for v in range(-4, 4):
                    if math.hypot(u, v) > size / 4:
                        wave = numpy.exp(-2j * numpy.pi * (u * rows[:, None] + v * rows[None, :]) / size)
                        total, count = total + abs((image * wave).sum()) ** 2 / size**2, count + 1
        return total / count

    images, theirs = (
        torch.randint(0, top, (n, 3, size, size), generator=generator(top)).byte()
        for top, n in ((90, 5), (200, 9))
    )
    labels, truth = torch.tensor([0, 0, 0, 2, 2]), torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2])
    own, real_power = (
        (power(some[of == 0]) + power(some[of == 2])) / 2 for some, of in ((images, labels), (theirs, truth))
    )
    found = high_frequency_gap(images, labels, theirs, truth)
    assert found == pytest.approx(10 * math.log10(own / real_power), abs=1e-4)
    assert found < -5
    assert high_frequency_gap(theirs, truth, theirs, truth) == 0
    blank = torch.full_like(images, 7)
    assert high_frequency_gap(blank, labels, blank, labels) == 0, "rounding to bytes is the floor"


def test_a_copy_is_found():
    """Two real images, one of them a little brighter, among images of noise."""
    truth = real(8, 1)
    images, labels = striped(1, 9)
    images[0], images[1] = truth.images[3], (truth.images[9].int() + 2).clamp(max=255).byte()
    found = by_pixels(images, labels, truth)
    assert found.rows[:2].tolist() == [3, 9]
    assert found.distances[0] == 0
    summary = found.summary()
    assert summary["copies"] == 2
    assert summary["images"][0] == {"nearest": "3", "distance": 0.0, "ratio": 0.0}
    assert summary["images"][2]["ratio"] > 0.5


def test_coverage_and_density_by_loops():
    images, theirs = points(5, 2), points(20, 3)
    labels, truth = torch.tensor([0, 0, 1, 1, 1]), torch.arange(2).repeat_interleave(10)
    found = spread_of(images, labels, theirs, truth)
    covered, inside = 0, [0] * 5
    for i in range(20):
        own = [(theirs[i] - theirs[j]).norm().item() for j in range(20) if j != i and truth[i] == truth[j]]
        radius = sorted(own)[4]
        held = [n for n in range(5) if labels[n] == truth[i] and (images[n] - theirs[i]).norm() < radius]
        covered += bool(held)
        for n in held:
            inside[n] += 1
    assert found.coverage == pytest.approx(covered / 20)
    assert found.density == pytest.approx(sum(inside) / 5 / 5)
    pairs = [(0, 1), (2, 3), (2, 4), (3, 4)]
    expected = sum((images[a] - images[b]).norm().item() for a, b in pairs) / 4
    assert found.diversity == pytest.approx(expected, abs=1e-5)
    assert spread_of(theirs, truth, theirs, truth).coverage == 1
    assert spread_of(images[1:3], labels[1:3], theirs, truth).diversity is None


def test_frechet_distance_by_its_formula():
    """In float64 with scipy's matrix root; absolute error 1e-6."""
    one, other = points(30, 4).double(), (points(40, 5) * 1.5 + 0.3).double()
    covariances = [part.T.cov() for part in (one, other)]
    root = torch.from_numpy(scipy.linalg.sqrtm((covariances[0] @ covariances[1]).numpy()).real)
    expected = (one.mean(0) - other.mean(0)).square().sum() + torch.trace(sum(covariances) - 2 * root)
    assert frechet_distance(one.float(), other.float()) == pytest.approx(expected.item(), abs=1e-4)
    assert frechet_distance(one, other) == pytest.approx(expected.item(), abs=1e-6)
    assert frechet_distance(one[:1], other) is None


def test_confusion_adds_up_students(tmp_path):
    lesson = Lesson(SPEC, Protocol.load(protocol_file(tmp_path)), {"narrow": NARROW}, 3)
    test, training = Labelled(*striped(10, 2)), TrainingSet(*striped(2, 3))
    students = [Student("distilled", "narrow", repeat, 4) for repeat in (0, 1)]
    (found,) = confusions(lesson, training, test, students)
    accuracies = [lesson.run(student, training, test).accuracy for student in students]
    assert found.accuracy == pytest.approx(sum(accuracies) / 2)
    assert found.counts.sum(1).tolist() == [20, 20, 20]
    assert found.students == 2


def test_confusion_by_class():
    confusion = Confusion("net", torch.tensor([[8, 2, 0], [0, 5, 5], [0, 0, 0]]), 1)
    assert confusion.per_class == [0.8, 0.5, None]
    assert confusion.accuracy == pytest.approx(0.65)
    assert confusion.worst(CLASSES) == [
        {"class": "green", "taken_for": "blue", "share": 0.5},
        {"class": "red", "taken_for": "green", "share": pytest.approx(0.2)},
    ]


def test_features_are_those_of_a_network_that_has_learned():
    truth = real(12, 1)
    network = trained_features(truth, SPEC, 0, CPU)
    assert torch.equal(network(truth.images[:4]), trained_features(truth, SPEC, 0, CPU)(truth.images)[:4])
    assert network(truth.images[:2]).shape == (2, 32 * 16)
    logits = in_batches(trained_network(truth, SPEC, 0, CPU), SPEC, truth.images, CPU)
    assert cross_entropy(logits, truth.labels) < 0.7
    assert "trained on the 36 real training images" in network.name


def test_features_of_a_classifier_are_its_own_before_its_head(tmp_path):
    """Against torchvision's own extractor behind a normalisation written out here."""
    torch.manual_seed(0)
    classifier = torchvision.models.mobilenet_v2(num_classes=7).eval()
    torch.save(classifier.state_dict(), tmp_path / "weights.pt")
    features = ClassifierFeatures(
        "mobilenet_v2", str(tmp_path / "weights.pt"), 48, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    )
    network = features.load(SPEC, torch.device("cpu"))
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=generator(0))
    inputs = resize(images.double() / 255, [48, 48], antialias=True)
    inputs = normalize(inputs, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    extractor = create_feature_extractor(classifier.double(), {"classifier.0": "out"})
    with torch.no_grad():
        expected = extractor(inputs)["out"]
    assert network(images).shape == (5, 1280)
    torch.testing.assert_close(network(images).double(), expected, atol=1e-4, rtol=0)
    assert "torchvision mobilenet_v2 sha256:" in network.name
    assert "48 px" in network.name


def test_features_of_a_classifier_without_a_linear_end(tmp_path):
    torch.save(torchvision.models.squeezenet1_1(num_classes=7).state_dict(), tmp_path / "weights.pt")
    features = ClassifierFeatures("squeezenet1_1", str(tmp_path / "weights.pt"))
    with pytest.raises(UserError, match="squeezenet1_1"):
        features.load(SPEC, torch.device("cpu"))
    with pytest.raises(UserError, match=r"features.size \(0\) must be at least 1"):
        ClassifierFeatures("resnet18", str(tmp_path / "weights.pt"), size=0)


@pytest.fixture
def run_check(tmp_path):
    def call(distilled, **settings):
        path = distilled.save(tmp_path / "run" / "distilled")
        settings = {"protocol": protocol_file(tmp_path, epochs=2)} | settings
        check(str(path), SmallData(), **settings)
        folder = tmp_path / "run" / "checks"
        return json.loads((folder / "checks.json").read_text()), folder

    return call


def test_the_command_writes_figures_and_pictures(run_check, capsys):
    report, folder = run_check(small_set(2))
    assert sorted(file.name for file in folder.iterdir()) == [
        "checks.json",
        "confusion.png",
        "neighbours.png",
    ]
    for name in ("confusion.png", "neighbours.png"):
        assert Image.open(folder / name).width > 200
    assert set(report["images"]) == {"distilled", "random_real"}
    assert report["copies"]["pixels"]["copies"] == 0
    assert report["images"]["random_real"]["coverage"] >= 6 / 24, "a real image covers itself"
    narrow = report["confusion"]["narrow"]
    assert len(narrow["per_class"]) == 3
    assert sum(map(sum, narrow["confusion"])) == 30
    assert report["protocol"]["id"] == "small"
    assert "coverage" in capsys.readouterr().out
    assert run_check(small_set(2))[0] == report


def test_the_command_finds_copies(run_check, tmp_path):
    data = SmallData()
    data.setup()
    images, labels = data.train_images.images[[0, 9, 17]], torch.arange(3)
    copied = DistilledSet.from_images(images, labels, CLASSES, mean=SPEC.mean, std=SPEC.std)
    report, folder = run_check(copied, repeats=0)
    assert {name: found["copies"] for name, found in report["copies"].items()} == {"pixels": 3, "features": 3}
    assert report["images"]["distilled"]["diversity"] is None
    assert not (folder / "confusion.png").exists()


def test_the_command_takes_a_classifiers_features(run_check, tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=5).state_dict(), tmp_path / "weights.pt")
    features = ClassifierFeatures("resnet18", str(tmp_path / "weights.pt"))
    report, _ = run_check(small_set(2), repeats=0, features=features)
    assert report["features"].startswith("torchvision resnet18 sha256:")
    assert report["copies"]["features"] != run_check(small_set(2), repeats=0)[0]["copies"]["features"]


def test_refusals(run_check, tmp_path):
    with pytest.raises(UserError, match=r"repeats \(-1\) and copy_ratio"):
        run_check(small_set(), repeats=-1)
    with pytest.raises(UserError, match="made with the test split eeee"):
        run_check(small_set(test_split_fingerprint="e" * 32))
    assert not (tmp_path / "run" / "checks").exists()


def test_the_runs_own_data_are_taken(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"data": {"image_size": 32}, "model": {}}))
    with data_of_run(config) as file:
        assert yaml.safe_load(file.read_text()) == {"image_size": 32}
    config.write_text("model: {}")
    with pytest.raises(UserError, match="has no section data; give --data"), data_of_run(config):
        pass


def test_large_pixels_are_averaged():
    assert pixels(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 3 * 32 * 32)


def test_a_set_of_one_class_has_a_confusion_too():
    spec = replace(SPEC, classes=CLASSES[:1])
    test = Labelled(striped(4, 2)[0][:4], torch.zeros(4, dtype=torch.int64))
    network = NARROW(1, 32)
    assert confusion_matrix(network, spec, test).tolist() == [[4]]


def test_confusion_counts_classes_down_and_answers_across():
    class Says(torch.nn.Module):
        def forward(self, images):
            return torch.eye(3)[torch.tensor([0, 1, 1, 2])]

    test = Labelled(striped(2, 2)[0][:4], torch.tensor([0, 0, 1, 1]))
    assert confusion_matrix(Says(), SPEC, test).tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
