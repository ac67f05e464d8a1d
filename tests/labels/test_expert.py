"""Soft labels of an early expert: the formula, the choice of the epoch, and the sets beside a labelled one."""

from functools import partial

import pytest
import torch
from small_world import SPEC, protocol_file
from torch.func import functional_call

from ldd.artefact.set import DistilledSet
from ldd.artefact.size import Amount
from ldd.data import DistillationData, RandomPruner
from ldd.errors import UserError
from ldd.evaluation import EqualBytes, ExpertLabels, Labeller, Protocol, Setting, evaluate, train_student
from ldd.experts.recording import record_experts
from ldd.experts.trajectories import Trajectories
from ldd.images import Labelled
from ldd.networks import ConvNet, accuracy
from ldd.runtime.seeding import derive_seed, seeded

TINY = partial(ConvNet, depth=2, width=4)
CPU = torch.device("cpu")
EPOCHS = 5


@pytest.fixture(scope="module")
def data():
    """Three digits, a third of each for the experts."""
    chosen = DistillationData(subset=["0", "1", "4"], pruner=RandomPruner(0.3))
    chosen.setup()
    return chosen


@pytest.fixture(scope="module")
def recording(data, tmp_path_factory):
    settings = {"network": TINY, "epochs": EPOCHS, "batch_size": 16, "learning_rate": 0.1, "progress": False}
    out = str(tmp_path_factory.mktemp("experts"))
    return record_experts(data, num_experts=2, augmentation=[], out=out, **settings)


@pytest.fixture
def labels(recording, tmp_path):
    common = {"trajectories": str(recording), "network": TINY, "protocol": protocol_file(tmp_path, epochs=3)}
    return lambda **arguments: ExpertLabels(**common | arguments)


def choose(labels, data, counts=(1, 1, 1), seed=0):
    return labels.choose(data, counts, seed, CPU, num_workers=1)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_labels_are_the_experts_softmax(labels, data, recording, temperature):
    """In float64 from the recorded weights; half precision rounds by up to 2^-12 below 1/2, 2^-11 above."""
    labeller = choose(labels(expert=1, epoch=3, temperature=temperature), data)
    images = data.test_images.images[::9]
    weights, network, start = Trajectories.open(recording).read(1, [3])[0].double(), TINY(3, 32).double(), 0
    parameters = {}
    for name, parameter in network.named_parameters():
        parameters[name] = weights[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    logits = functional_call(network, parameters, (data.spec.normalise(images.double() / 127.5 - 1),))
    expected = (logits / temperature).exp() / (logits / temperature).exp().sum(1, keepdim=True)
    found = labeller(images)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), expected, atol=3e-4, rtol=0)
    exact = choose(labels(expert=1, epoch=3, temperature=temperature, precision="float32"), data)(images)
    torch.testing.assert_close(exact.double(), expected, atol=1e-6, rtol=0)
    assert labeller.facts["epoch"] == 3
    assert labeller.facts["expert"] == 1


class Guarded:
    """Data whose test split may not be read."""

    def __init__(self, data):
        self._data = data

    def __getattr__(self, name):
        assert name != "test_images", "an epoch is chosen on the selection split"
        return getattr(self._data, name)


def test_auto_takes_the_epoch_whose_students_do_best(labels, data, recording):
    chosen = choose(labels(candidates=[0, 2, 5], repeats=2), Guarded(data), counts=(2, 1, 2), seed=3)
    lesson_seed, protocol, scores = derive_seed(3, "label students"), labels().protocol, {}
    for epoch in (0, 2, 5):
        labeller, found = choose(labels(epoch=epoch), data, seed=3), []
        for repeat in range(2):
            images, hard = data.train_images.draw_set((2, 1, 2), "a test", 3, "label images", repeat)
            assert hard.tolist() == [0, 0, 1, 2, 2]
            with seeded(lesson_seed, "network", "student", repeat):
                student = TINY(3, 32)
            seed = derive_seed(lesson_seed, "student", "student", repeat)
            train_student(
                student, Labelled(images, labeller(images).float()), data.spec, protocol, epochs=3, seed=seed
            )
            tested = data.selection_images
            normalise = lambda part: data.spec.normalise(part.float() / 127.5 - 1)  # noqa: E731
            found.append(accuracy(student, tested.images, tested.labels, normalise=normalise))
        scores[str(epoch)] = sum(found) / 2
    assert chosen.facts["selection_accuracy"] == scores
    assert chosen.facts["epoch"] == int(max(scores, key=lambda epoch: (scores[epoch], -int(epoch))))


def test_students_of_auto_have_the_budget_of_so_many_images(labels, data, tmp_path):
    """As the evaluation of a set with these numbers of images has: by the largest of a class."""

    def scores(protocol, counts):
        chosen = choose(labels(protocol=protocol, candidates=[0, 2]), data, counts=counts)
        return chosen.facts["selection_accuracy"]

    def protocol(name, **changes):
        (tmp_path / name).mkdir()
        return protocol_file(tmp_path / name, **{"epochs": 2, "lr": 0.5} | changes)

    by_images = protocol("by", by_images={4: {"epochs": 6, "batch_size": 3}})
    few = scores(protocol("few", epochs=6, batch_size=3), (4, 1, 2))
    many = scores(protocol("many"), (5, 1, 2))
    assert scores(by_images, (4, 1, 2)) == few != scores(protocol("one"), (4, 1, 2))
    assert scores(by_images, (5, 1, 2)) == many


@pytest.mark.parametrize("epoch", [1, "auto"])
def test_a_protocol_with_a_teacher(labels, tmp_path, epoch):
    taught = protocol_file(tmp_path, labels="teacher")
    with pytest.raises(
        UserError, match=r"labels.protocol \(.*small.yaml\) has a teacher's labels.*labels: own"
    ):
        labels(protocol=taught, epoch=epoch)


def test_candidates_are_spread_over_the_recorded_epochs(labels):
    assert labels()._epochs(5) == [1, 2, 3, 4, 5]
    many = labels()._epochs(100)
    assert (many[0], many[-1]) == (1, 100)
    assert len(many) <= 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epoch": 6}, r"labels.trajectories .* has 5 epochs, but labels.epoch \(6\) takes epoch 6"),
        ({"candidates": [1, 9]}, r"has 5 epochs, but labels.candidates \(9\) takes epoch 9"),
        ({"expert": 2, "epoch": 1}, "the first 2 of 3 experts"),
        ({"top_k": 4, "epoch": 1}, r"labels.top_k \(4\) is more than the 3 classes"),
        ({"network": partial(ConvNet, depth=2, width=5)}, "parameters"),
        (
            {"network": partial(ConvNet, depth=2, width=4, norm="batch")},
            "whose statistics expert trajectories do not",
        ),
    ],
)
def test_what_does_not_fit(labels, data, arguments, message):
    with pytest.raises(UserError, match=message):
        choose(labels(**arguments), data)


@pytest.mark.parametrize(
    "arguments",
    [{"epoch": -1}, {"temperature": 0}, {"top_k": 0}, {"repeats": 0}, {"expert": -1}, {"candidates": []}],
)
def test_bad_numbers(labels, arguments):
    with pytest.raises(UserError, match=rf"labels\.{next(iter(arguments))}"):
        labels(**arguments)


@pytest.fixture
def labelled(labels, data):
    """Six images of three digits, soft labels in half precision, the largest two of each."""
    labeller = choose(labels(epoch=2, top_k=2), data)
    images, hard = data.train_images.draw_set((2, 2, 2), "a test", 0, "a set")
    distilled = DistilledSet.from_images(
        images,
        hard,
        data.classes,
        soft_labels=labeller(images),
        label_top_k=2,
        mean=data.spec.mean,
        std=data.spec.std,
    )
    return distilled, labeller


def test_sets_beside_a_labelled_one(labelled, data, tmp_path):
    distilled, labeller = labelled
    protocol = Protocol.load(protocol_file(tmp_path, epochs=2))
    baselines = [EqualBytes(), EqualBytes(soft=True)]
    settings = {"baselines": baselines, "labeller": labeller, "num_workers": 1, "progress": False}
    report = evaluate(distilled, None, data, protocol, 1, **settings)
    assert [row.set for row in report.rows] == [
        "distilled",
        "distilled_hard",
        "random_real_bytes",
        "random_real_bytes_soft",
    ]
    cost = report.facts["cost"]
    image, soft = 3 * 32 * 32 + 8, 2 * 2 + 2 * 2  # two halves and two indices of 16 bits
    assert cost["distilled"]["storage"]["bytes"] == 6 * (image + soft)
    assert cost["distilled_hard"]["storage"]["bytes"] == 6 * image
    assert cost["random_real_bytes_soft"]["storage"]["bytes"] == 6 * (image + soft)
    assert cost["random_real_bytes_soft"]["storage"]["floats"] == 6 * (3072 + 2)
    assert cost["random_real_bytes"]["training"]["images_per_epoch"] == 6


def test_equal_bytes(labelled, data):
    """1.5 images a class: all get one, half of them (which ones depends on the repeat) a second."""
    _, labeller = labelled
    image, soft = 3 * 32 * 32 + 8, 8
    for baseline, each in ((EqualBytes(), image), (EqualBytes(soft=True), image + soft)):
        setting = Setting(data, [1, 1, 1], seed=0, bytes=5 * each - 1, labeller=labeller)
        drawn = [baseline.set_for(repeat, setting) for repeat in range(8)]
        assert {len(part.images) for part in drawn} == {4}
        storage = baseline.storage(drawn[0], setting)
        assert storage.total().bytes == 4 * each <= setting.bytes
        if baseline.soft:
            assert torch.equal(drawn[0].labels, labeller(drawn[0].images).float())
        else:
            assert len({tuple(part.labels.tolist()) for part in drawn}) > 1
            assert all(set(part.labels.tolist()) == {0, 1, 2} for part in drawn)
    everything = Setting(data, [1, 1, 1], seed=0, bytes=10**9)
    assert len(EqualBytes().set_for(0, everything).images) == len(data.train_images)


def test_equal_bytes_refuses_what_it_cannot_give(data):
    with pytest.raises(UserError, match="less than one real image"):
        EqualBytes().set_for(0, Setting(data, [1, 1, 1], seed=0, bytes=3000))
    with pytest.raises(UserError, match="needs what labelled the distilled set"):
        EqualBytes(soft=True).set_for(0, Setting(data, [1, 1, 1], seed=0, bytes=10**6))


def test_bytes_of_a_label():
    labeller = Labeller(TINY(3, 32), SPEC)
    assert labeller.amount_per_label == Amount(floats=3, bytes=6)
    assert Labeller(TINY(3, 32), SPEC, precision="float32").amount_per_label.bytes == 12
