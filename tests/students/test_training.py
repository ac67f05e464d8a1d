"""One student: its training against a plain loop, its seeds, its average, inference mode."""

import copy
from functools import partial

import pytest
import torch
from small_world import NARROW, SPEC, protocol_file, striped
from torch.nn import functional as F

from ldd.evaluation import Protocol, train_student
from ldd.images import Labelled
from ldd.students.protocol import warm_up
from ldd.students.training import Lesson, Student, epoch_average, fresh_network, one_thread


@pytest.fixture
def protocol(tmp_path):
    return Protocol.load(protocol_file(tmp_path))


@pytest.fixture
def lesson(protocol):
    return Lesson(SPEC, protocol, {"narrow": NARROW, "other": NARROW}, seed=5)


def weights(network):
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach()


def plain_loop(network, training, epochs, lr):
    """Full batches, no augmentation; normalisation written out."""
    mean = torch.tensor(SPEC.mean).view(3, 1, 1)
    std = torch.tensor(SPEC.std).view(3, 1, 1)
    x = (training.images / 255 - mean) / std
    momentum = [torch.zeros_like(p) for p in network.parameters()]
    trace = []
    for epoch in range(epochs):
        gradients = torch.autograd.grad(
            F.cross_entropy(network(x), training.labels), list(network.parameters())
        )
        with torch.no_grad():
            for p, g, m in zip(network.parameters(), gradients, momentum, strict=True):
                m.mul_(0.9).add_(g + 5e-4 * p)
                p.sub_(lr * warm_up(epoch, epochs) * m)
        trace.append(weights(network))
    return trace


def test_training_equals_a_plain_loop(tmp_path):
    protocol = Protocol.load(protocol_file(tmp_path, augmentations=[]))
    training = Labelled(*striped(2, 4))
    network = fresh_network(NARROW, SPEC, 0, "a", 0)
    twin = copy.deepcopy(network)
    before = weights(network)
    assert train_student(network, training, SPEC, protocol, epochs=6, seed=1) is network
    expected = plain_loop(twin, training, 6, 0.05)[-1]
    assert (weights(network) - expected).abs().max() < 1e-5
    assert (expected - before).abs().max() > 1e-2


def test_rate_of_a_class(tmp_path):
    path = protocol_file(tmp_path, augmentations=[], network_lr={"ldd.networks.ConvNet": 0.01})
    training = Labelled(*striped(2, 4))
    network = fresh_network(NARROW, SPEC, 0, "a", 0)
    expected = plain_loop(copy.deepcopy(network), training, 4, 0.01)[-1]
    train_student(network, training, SPEC, Protocol.load(path), epochs=4, seed=1)
    assert (weights(network) - expected).abs().max() < 1e-5


def test_average_of_the_weights(tmp_path):
    protocol = Protocol.load(protocol_file(tmp_path, augmentations=[], weight_ema=True))
    training = Labelled(*striped(2, 4))
    network = fresh_network(NARROW, SPEC, 0, "a", 0)
    trace = plain_loop(copy.deepcopy(network), training, 5, 0.05)
    tested = train_student(network, training, SPEC, protocol, epochs=5, seed=1)
    assert (
        weights(tested) - torch.stack(trace).mean(0)
    ).abs().max() < 1e-5  # below 200 updates: the plain mean
    assert (weights(tested) - weights(network)).abs().max() > 1e-3


def test_decay_of_the_average():
    network = torch.nn.Linear(1, 1, bias=False)
    average = epoch_average(network)
    expected = 0.0
    for n in range(1, 301):
        with torch.no_grad():
            network.weight.fill_(float(n % 7))
        average.update_parameters(network)
        decay = min(0.995, 1 - 1 / n)
        expected = decay * expected + (1 - decay) * (n % 7)
    assert average.module.weight.item() == pytest.approx(expected, abs=1e-4)


def test_a_student_is_repeatable(lesson):
    training, test = Labelled(*striped(1, 3)), Labelled(*striped(10, 2))
    student = Student("distilled", "narrow", 0, 4)
    torch.manual_seed(0)
    first = lesson.run(student, training, test)
    torch.manual_seed(1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert lesson.run(student, training, test).accuracy == first.accuracy
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert 0 <= first.accuracy <= 1
    assert first.seconds > 0


def test_sets_meet_the_same_networks(lesson):
    initial = weights(fresh_network(NARROW, SPEC, 5, "narrow", 0))
    assert torch.equal(initial, weights(fresh_network(NARROW, SPEC, 5, "narrow", 0)))
    for seed, name, repeat in ((6, "narrow", 0), (5, "other", 0), (5, "narrow", 1)):
        assert not torch.equal(initial, weights(fresh_network(NARROW, SPEC, seed, name, repeat)))
    training, test = Labelled(*striped(1, 3)), Labelled(*striped(10, 2))
    one, two = (lesson.run(Student(name, "narrow", 0, 4), training, test) for name in ("a", "b"))
    assert one.accuracy == two.accuracy


@pytest.mark.parametrize("weight_ema", [False, True])
def test_students_learn_under_inference_mode(tmp_path, weight_ema):
    protocol = Protocol.load(protocol_file(tmp_path, epochs=40, augmentations=[], weight_ema=weight_ema))
    trained = []

    def watched(num_classes, image_size):
        trained.append(NARROW(num_classes, image_size))
        trained.append(weights(trained[0]).clone())
        return trained[0]

    student = Student("distilled", "watched", 0, 40)
    with torch.inference_mode():
        outcome = Lesson(SPEC, protocol, {"watched": watched}, 0).run(
            student, Labelled(*striped(2, 3)), Labelled(*striped(10, 2))
        )
    assert (weights(trained[0]) - trained[1]).abs().max() > 1e-2
    outside = Lesson(SPEC, protocol, {"watched": NARROW}, 0)
    assert (
        outcome.accuracy == outside.run(student, Labelled(*striped(2, 3)), Labelled(*striped(10, 2))).accuracy
    )
    assert outcome.accuracy > 0.6  # three classes


def test_one_thread_is_undone_by_an_error():
    threads = torch.get_num_threads()
    with one_thread(torch.device("cpu")):
        assert torch.get_num_threads() == 1
    with pytest.raises(KeyError), one_thread(torch.device("cpu")):
        raise KeyError
    assert torch.get_num_threads() == threads


def test_factories_may_be_partials_of_partials():
    assert weights(fresh_network(partial(NARROW, norm="none"), SPEC, 0, "a", 0)).numel() > 0
