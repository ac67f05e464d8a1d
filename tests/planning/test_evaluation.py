"""What `latentdd plan` says of an evaluation: its students, and their time from the paces of a few."""

from types import SimpleNamespace

import pytest
import torch
from small_world import NARROW, SPEC, SmallData, protocol_file, small_set

from ldd.callbacks import CrossArchitecture
from ldd.errors import UserError
from ldd.evaluation import EqualBytes, Labeller
from ldd.planning import evaluation as planning
from ldd.planning.evaluation import Pace, measure_evaluation
from ldd.students.training import Outcome, fresh_network
from ldd.students.training_set import TrainingCost

CPU = torch.device("cpu")


@pytest.fixture
def data():
    chosen = SmallData()
    chosen.setup()
    return chosen


@pytest.fixture
def labeller():
    return Labeller(fresh_network(NARROW, SPEC, 0, "t", 0).eval(), SPEC)


def callback_of(folder, baselines=None, initial=False, budgets=(), repeats=1, **protocol):
    protocol = protocol_file(folder, **{"epochs": 8, "batch_size": 6} | protocol)
    return CrossArchitecture(
        protocol=protocol,
        repeats=repeats,
        baselines=baselines,
        initial=initial,
        budgets=budgets,
        num_workers=1,
    )


def distilling(distilled, labeller=None):
    """As much of a run as is asked."""
    return SimpleNamespace(
        distilled_set=lambda: distilled, labeller=labeller, num_steps_done=torch.tensor(0), sample=None
    )


@pytest.fixture
def timed(monkeypatch):
    """Students that take 5 s, 0.1 s a step and 0.01 s an image, and looks that take 0.5 s; what was asked for."""
    asked = SimpleNamespace(lessons=[], tested=[])

    def run_students(lesson, students, given, test, **rest):
        asked.lessons.append(lesson)
        assert "selection" not in rest  # looks are timed on their own
        outcomes = {}
        for student in students:
            images = len(given[student.set, 0].labels)
            work = TrainingCost.of(student.epochs, images, student.batch_size or 6)
            outcomes[student] = Outcome(0.0, 5 + 0.1 * work.steps + 0.01 * work.epochs * images)
        return outcomes

    def look(lesson, name, tested, device):
        asked.tested.append([len(split.labels) for split in tested])
        return 0.5

    monkeypatch.setattr(planning, "run_students", run_students)
    monkeypatch.setattr(planning, "_look_seconds", look)
    return asked


def test_seconds_by_hand(data, timed, tmp_path):
    """Four sets of 6 images, 8 epochs, two repeats; all 24 images for 2 epochs, and for as many steps (2 epochs)."""
    callback = callback_of(tmp_path, repeats=2, full_data_batch_size=12, looks=3)
    cost = measure_evaluation(callback, distilling(small_set(2)), data, CPU)
    small = 5 + 8 * 0.1 + 48 * 0.01 + 3 * 0.5
    full = 5 + 4 * 0.1 + 48 * 0.01 + 2 * 0.5  # two looks: one after each epoch
    full_steps = 5 + 8 * 0.1 + 48 * 0.01 + 2 * 0.5
    assert cost.students == 4 * 2 + 1 + 1
    assert cost.seconds == pytest.approx(8 * small + full + full_steps)
    assert timed.tested == [[30, 18]]  # test and selection split
    measure_evaluation(callback_of(tmp_path), distilling(small_set(2)), data, CPU)
    assert len(timed.tested) == 1  # without looks there is nothing to time


def test_probes_learn_from_the_teacher(data, labeller, timed, tmp_path):
    callback = callback_of(tmp_path, labels="teacher")
    measure_evaluation(callback, distilling(small_set(2), labeller), data, CPU)
    measure_evaluation(callback_of(tmp_path), distilling(small_set(2), labeller), data, CPU)
    with_teacher, without = (lesson.teacher for lesson in timed.lessons)
    assert with_teacher.network is labeller.network
    assert without is None
    with pytest.raises(UserError, match="has the labels of a teacher for every crop, and there is none"):
        measure_evaluation(callback, distilling(small_set(2)), data, CPU)


def test_what_the_evaluation_would_refuse(data, timed, tmp_path):
    callback = callback_of(tmp_path, [EqualBytes(soft=True)])
    with pytest.raises(UserError, match="random_real_bytes_soft needs what labelled the distilled set"):
        measure_evaluation(callback, distilling(small_set(2)), data, CPU)


def test_students_that_are_really_timed(data, labeller, tmp_path):
    callback = callback_of(tmp_path, labels="teacher", looks=2)
    cost = measure_evaluation(callback, distilling(small_set(2), labeller), data, CPU)
    assert cost.students == 4 + 2
    assert cost.seconds > 0
    assert cost.peak_memory_mib > 0


def test_paces_are_never_negative():
    """Two sizes tell steps and images apart; noise or one size charge either of them."""
    few, many = TrainingCost.of(4, 6, 6), TrainingCost.of(2, 48, 12)  # 4 steps of 6 and 8 of 12
    pace = Pace.of([(few, 4 * 0.3 + 24 * 0.1), (many, 8 * 0.3 + 96 * 0.1)], before=2.0, look=1.0)
    assert (pace.step, pace.image) == pytest.approx((0.3, 0.1))
    assert pace.seconds(TrainingCost.of(1, 10, 10), looks=4) == pytest.approx(2 + 0.3 + 1 + 4)
    for first, second in ((1.0, 1.0), (0.1, 9.0), (0.0, 0.0)):
        pace = Pace.of([(few, first), (many, second)])
        assert min(pace.step, pace.image) == 0
        assert pace.step * 12 + pace.image * 120 == pytest.approx(first + second)  # all that was measured
    alike = Pace.of([(few, 1.0), (few, 1.0)])
    assert (alike.step, alike.image) == (0.0, pytest.approx(2 / 48))
