"""What protocols may ask of a student: views, CutMix, AdamW, a teacher's labels, looks; and scores by hand."""

import csv
import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from small_world import NARROW, SPEC, SmallData, protocol_file, small_set, striped
from torch.nn import functional as F

from ldd.augmentation.siamese import SiameseAugmentation
from ldd.augmentation.views import Views, cutmix
from ldd.errors import UserError
from ldd.evaluation import Labeller, Protocol, Report, evaluate, train_student
from ldd.evaluation.results.robustness import Accuracies, robustness, scaled
from ldd.images import Labelled
from ldd.labels.crops import CropTeacher
from ldd.networks import ConvNet
from ldd.runtime.seeding import generator
from ldd.students.optimizers import student_optimizer
from ldd.students.training import Lesson, Looks, Student, fresh_network

TEACHER = partial(ConvNet, width=3, depth=1)
# A bias before instance norm has no gradient but rounding errors, which AdamW would blow up.
UNNORMED = partial(NARROW, norm="none")


def weights(network):
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach()


def trained(protocol, seed=1, epochs=4, factory=NARROW, **arguments):
    network = fresh_network(factory, SPEC, 0, "a", 0)
    train_student(network, Labelled(*striped(2, 4)), SPEC, protocol, epochs=epochs, seed=seed, **arguments)
    return weights(network)


@pytest.fixture
def teacher():
    return fresh_network(TEACHER, SPEC, 8, "teacher", 0).eval().requires_grad_(False)


def test_adamw_views_cutmix_and_teacher_by_a_plain_loop(tmp_path, teacher):
    """The same draws, everything else written out: absolute error 1e-5 after four steps."""
    views = {"patches": 2, "crop_scale": [0.5, 1.0], "flip": True, "jitter": 0.4, "lighting": 0.1}
    changes = {"optimizer": "adamw", "decay_vectors": False, "rates": "half_cosine", "lr": 1e-3}
    changes |= {"views": views, "augmentations": [], "cutmix": 1.0, "labels": "teacher", "temperature": 3}
    protocol = Protocol.load(protocol_file(tmp_path, weight_decay=0.1, **changes))
    images, labels = striped(2, 4)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SPEC.mean, SPEC.std))
    network = fresh_network(UNNORMED, SPEC, 0, "a", 0)
    parameters = list(network.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    view = Views(2, (0.5, 1.0), True, 0.4, 0.1)
    asked = CropTeacher(teacher, 3, None, "float32")
    for epoch in range(4):
        draws = generator(1, "augmentation", epoch)
        x = (view(images / 255, draws) - mean) / std
        x, _ = cutmix(x, torch.eye(3)[labels], 1.0, draws)
        q = torch.softmax(teacher(x) / 3, 1)
        loss = (q * (q.log() - torch.log_softmax(network(x) / 3, 1))).sum(1).mean()
        gradients = torch.autograd.grad(loss, parameters)
        rate = 1e-3 * 0.5 * (1 + math.cos(math.pi * epoch / 8))
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                p.mul_(1 - rate * 0.1 * (p.ndim > 1))
                m.lerp_(g, 0.1)
                v.lerp_(g.square(), 0.001)
                step = (m / (1 - 0.9 ** (epoch + 1))) / ((v / (1 - 0.999 ** (epoch + 1))).sqrt() + 1e-8)
                p.sub_(rate * step)
    assert (trained(protocol, teacher=asked, factory=UNNORMED) - weights(network)).abs().max() < 1e-5


def test_cutmix_of_hard_labels_weighs_two_losses(tmp_path):
    """One step of plain SGD from the gradient of the two losses, weighed by area; absolute error 1e-6."""
    changes = {"augmentations": [], "cutmix": 1.0, "rates": "drop", "momentum": 0.0}
    protocol = Protocol.load(protocol_file(tmp_path, **changes))
    images, labels = striped(2, 4)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SPEC.mean, SPEC.std))
    for seed in range(20):
        draws = generator(seed, "augmentation", 0)
        SiameseAugmentation(()).draw(6, draws, one_strategy=True)
        x, target = cutmix((images / 255 - mean) / std, torch.eye(3)[labels], 1.0, draws)
        if target.min(1).values.max() == 0 and 0 < float(target[target > 0].min()) < 0.5:
            break
    network = fresh_network(NARROW, SPEC, 0, "a", 0)
    log = torch.log_softmax(network(x), 1)
    gradients = torch.autograd.grad(-(target * log).sum(1).mean(), list(network.parameters()))
    before = weights(network)
    train_student(network, Labelled(images, labels), SPEC, protocol, epochs=1, seed=seed)
    gradient = torch.cat([g.flatten() for g in gradients]) + 5e-4 * before
    assert (before - weights(network) - 0.05 * gradient).abs().max() < 1e-6


def test_momentum_that_starts_anew_at_the_drop(tmp_path):
    """Five epochs of one full batch by hand: the third is the last at the full rate; absolute error 1e-6."""
    changes = {"augmentations": [], "rates": "released_drop", "weight_decay": 0.0}
    protocol = Protocol.load(protocol_file(tmp_path, **changes))
    images, labels = striped(2, 4)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SPEC.mean, SPEC.std))
    network = fresh_network(NARROW, SPEC, 0, "a", 0)
    by_hand = fresh_network(NARROW, SPEC, 0, "a", 0)
    parameters = list(by_hand.parameters())
    for epoch in range(5):
        if epoch in (0, 4):  # the full rate up to floor(4 / 2) + 1
            moved = [torch.zeros_like(p) for p in parameters]
        log = torch.log_softmax(by_hand((images / 255 - mean) / std), 1)
        gradients = torch.autograd.grad(-log[range(6), labels].mean(), parameters)
        with torch.no_grad():
            for p, g, v in zip(parameters, gradients, moved, strict=True):
                v.mul_(0.9).add_(g)
                p.sub_(0.05 * (0.1 if epoch == 4 else 1) * v)
    train_student(network, Labelled(images, labels), SPEC, protocol, epochs=5, seed=0)
    assert (weights(network) - weights(by_hand)).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_every_optimiser_is_as_if_built_anew_at_the_drop(tmp_path, name):
    """Five epochs of one full batch, with a new optimiser for the fifth; absolute error 1e-6."""
    changes = {"augmentations": [], "rates": "released_drop", "optimizer": name, "lr": 1e-3}
    protocol = Protocol.load(protocol_file(tmp_path, **changes))
    images, labels = striped(2, 4)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SPEC.mean, SPEC.std))
    by_hand = fresh_network(UNNORMED, SPEC, 0, "a", 0)
    for epoch in range(5):
        if epoch in (0, 4):
            optimizer = student_optimizer(by_hand, protocol, by_hand.parameters())
            optimizer.param_groups[0]["lr"] = 1e-3 if epoch == 0 else 1e-4
        by_hand.zero_grad()
        F.cross_entropy(by_hand((images / 255 - mean) / std), labels).backward()
        optimizer.step()
    assert (trained(protocol, epochs=5, factory=UNNORMED) - weights(by_hand)).abs().max() < 1e-6


def test_without_augmentation(tmp_path):
    views = {"augmentations": [], "views": {"flip": True, "jitter": 0.3}, "cutmix": 1.0}
    busy, plain = (
        Protocol.load(protocol_file(tmp_path, **changes)) for changes in (views, {"augmentations": []})
    )
    assert torch.equal(trained(busy, augmented=False), trained(plain))
    assert not torch.equal(trained(busy), trained(plain))


def test_look_epochs():
    def look_epochs(looks, epochs):
        return replace(Protocol.load("quick"), looks=looks).look_epochs(epochs)

    assert look_epochs(4, 10) == {2 - 1, 5 - 1, 8 - 1, 10 - 1}
    assert look_epochs(100, 3) == {0, 1, 2}
    assert max(look_epochs(7, 100)) == 99
    assert look_epochs(0, 100) == set()


def test_looks_choose_on_the_selection_split():
    selection, test = iter([0.5, 0.8, 0.8, 0.1]), iter([0.3, 0.4, 0.9, 0.2])
    looks = Looks(lambda network: next(selection), lambda network: next(test))
    for _ in range(4):
        looks.take(NARROW(3, 32))
    assert looks.chosen() == (0.4, 0.9)


@pytest.fixture
def run(tmp_path):
    def call(distilled=None, folder=None, **changes):
        settings = {"repeats": 2, "num_workers": 1, "progress": False, "records": folder}
        arguments = {k: changes.pop(k) for k in ("labeller", "baselines", "num_workers") if k in changes}
        protocol = Protocol.load(protocol_file(tmp_path, **changes))
        return evaluate(distilled or small_set(2), None, SmallData(), protocol, **settings | arguments)

    return call


def test_a_student_is_reported_three_ways(run, tmp_path):
    """Looks change nothing about the last epoch; all are kept, written and read again."""
    plain = run(baselines=[])
    looked = run(baselines=[], looks=3, folder=tmp_path / "evaluated")
    assert [r.accuracy for r in looked.rows] == [r.accuracy for r in plain.rows]
    for row in looked.rows:
        assert row.best_on_test >= max(row.accuracy, row.selected)
    assert run(baselines=[], looks=3, folder=tmp_path / "evaluated").rows == looked.rows
    looked.write(tmp_path)
    header = (tmp_path / "evaluation.csv").read_text().splitlines()[0]
    assert header.endswith(",protocol,selected,best_on_test")
    assert Report.read(tmp_path).rows == looked.rows
    summary = json.loads((tmp_path / "evaluation.json").read_text())["selection"]["distilled"]["narrow"]
    for name, way in (("last", "accuracy"), ("selected", "selected"), ("best_on_test", "best_on_test")):
        assert summary[name]["mean"] == pytest.approx(sum(getattr(r, way) for r in looked.rows) / 2)
    assert plain.selections() == {}
    assert len(looked.tables()) == len(plain.tables()) + 1


def test_workers_look_too(run):
    here, there = (run(baselines=[], looks=2, num_workers=n).rows for n in (1, 2))
    assert [(r.accuracy, r.selected, r.best_on_test) for r in here] == [
        (r.accuracy, r.selected, r.best_on_test) for r in there
    ]


def test_a_teacher_protocol_needs_one_and_learns_from_it(run, teacher):
    with pytest.raises(UserError, match=r"protocol small has the labels of a teacher .* give --labels"):
        run(labels="teacher")
    labeller = Labeller(teacher, SPEC)
    other = Labeller(fresh_network(TEACHER, SPEC, 9, "teacher", 0).eval(), SPEC)
    rows = [run(labels="teacher", labeller=one, baselines=[], lr=0.3) for one in (labeller, labeller, other)]
    scores = [[r.accuracy for r in report.rows] for report in rows]
    assert scores[0] == scores[1] != scores[2]


def test_scores_by_hand_from_the_logged_accuracies(run, tmp_path):
    """LRS and ARS of the CSV file, written out; absolute error 1e-12."""
    run(scores="ddranking", baselines=[]).write(tmp_path)
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").open(newline="")))
    logged = {(r["set"], int(r["repeat"])): float(r["accuracy"]) for r in rows}
    assert {name for name, _ in logged} == {
        *("distilled", "random_real", "full_real", "distilled_plain", "random_real_plain")
    }
    expected = []
    for repeat in (0, 1):
        hlr = logged["full_real", 0] - logged["distilled", repeat]
        ior = logged["distilled", repeat] - logged["random_real", repeat]
        plain = logged["distilled_plain", repeat] - logged["random_real_plain", repeat]
        alpha, beta = 0.5 * ior - 0.5 * hlr, 0.5 * ior + 0.5 * plain
        expected.append([(math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1)) for a in (alpha, beta)])
    found = json.loads((tmp_path / "evaluation.json").read_text())["ddranking"]["narrow"]
    for place, name in enumerate(("lrs", "ars")):
        mean = (expected[0][place] + expected[1][place]) / 2
        assert found[name]["mean"] == pytest.approx(mean, abs=1e-12)
        assert found[name]["std"] == pytest.approx(abs(expected[0][place] - mean), abs=1e-12)


def test_scores_of_soft_labels_compare_the_same_labels(run, teacher):
    labeller = Labeller(teacher, SPEC)
    report = run(labeller.label(small_set(2)), scores="ddranking", labeller=labeller, baselines=[])
    assert list(report.scores()) == [
        *("distilled", "distilled_hard", "random_real_soft", "full_real"),
        *("distilled_plain", "random_real_soft_plain"),
    ]
    scores, found = report.scores(), robustness(report)["narrow"]
    hlr = scores["full_real"]["narrow"].mean - scores["distilled_hard"]["narrow"].mean
    ior = scores["distilled"]["narrow"].mean - scores["random_real_soft"]["narrow"].mean
    assert found["hlr"]["mean"] == pytest.approx(hlr, abs=1e-12)
    assert found["ior"]["mean"] == pytest.approx(ior, abs=1e-12)


def test_the_scale_of_the_released_package():
    """Its figures for IOR 20, HLR 10 and IOR 5, HLR 40, in points and as fractions (checked with version 0.2.0)."""
    assert [scaled(a) for a in (-1, 0, 1)] == pytest.approx([0, 0.2689414, 1], abs=1e-6)
    for ior, hlr, points, fractions in ((0.2, 0.1, 63.0, 0.291), (0.05, 0.4, -0.157, 0.201)):
        accuracies = Accuracies(0.5 + hlr, 0.5, 0.5 - ior, 0.5, 0.5, 0.5)
        assert accuracies.scores(unit=100)["lrs"] == pytest.approx(points, abs=0.05)
        assert accuracies.scores()["lrs"] == pytest.approx(fractions, abs=5e-4)


def test_a_kept_student_is_one_of_its_own_augmentation(run, tmp_path, monkeypatch):
    names, run_one = [], Lesson.run

    def counted(self, student, *arguments):
        names.append(student)
        return run_one(self, student, *arguments)

    monkeypatch.setattr(Lesson, "run", counted)
    first = run(scores="ddranking", baselines=[], folder=tmp_path / "evaluated")
    assert len(names) == 2 * 4 + 1
    again = run(scores="ddranking", baselines=[], folder=tmp_path / "evaluated")
    assert again.rows == first.rows
    assert len(names) == 9
    assert Student("distilled_plain", "narrow", 1, 4, None, False) in names


def test_soft_targets_meet_the_loss_at_their_temperature():
    logits, target = torch.randn(4, 3, generator=generator(0)), torch.full((4, 3), 1 / 3)
    from ldd.students.training import _loss

    expected = -(target * torch.log_softmax(logits / 5, 1)).sum(1).mean()
    assert _loss(5.0, logits, target).item() == pytest.approx(expected.item(), abs=1e-6)
    assert _loss(1.0, logits, torch.tensor([0, 1, 2, 0])) == F.cross_entropy(
        logits, torch.tensor([0, 1, 2, 0])
    )
