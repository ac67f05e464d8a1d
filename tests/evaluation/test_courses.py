"""Courses: the work of every student counted before anything is made, and what is refused as early."""

import pytest
import torch
from small_world import NARROW, SPEC, SmallData, protocol_file, small_set

from ldd.errors import UserError
from ldd.evaluation import Baseline, EqualBytes, FixedSet, Labeller, Protocol, RandomReal, evaluate
from ldd.evaluation.baselines.variants import EqualSteps, Plain
from ldd.evaluation.courses import courses
from ldd.evaluation.request import Request
from ldd.evaluation.results.rows import PLAIN
from ldd.students import training_set
from ldd.students.training import fresh_network
from ldd.students.training_set import Size


def NEVER_CALLED(generator):
    raise AssertionError("codes are drawn when a student learns from them")


@pytest.fixture
def data():
    chosen = SmallData()
    chosen.setup()
    return chosen


def protocol_of(folder, **changes):
    return Protocol.load(protocol_file(folder, **{"epochs": 8, "batch_size": 6} | changes))


def work_of(distilled, data, protocol, **fields):
    """Course, repeat and cost of each student of a network; no image is picked and no code drawn."""
    planned, _ = courses(distilled, Request(data, protocol, **fields))
    return [(course, repeat, course.cost(repeat)) for course in planned for repeat in range(course.repeats)]


def test_work_by_hand_and_as_evaluate_counts_it(data, tmp_path):
    """Six codes with a spread and soft labels: 8 epochs of the means and of one of four draws, in batches of 6.

    That is 8 x 2 steps. Stored are 2 x 6 x 1024 numbers of four bytes and labels of 8 and 3 x 2 bytes, which pay for 15
    images with hard labels (5 of each class, 3 steps) and for 15 with soft ones (3086 bytes each).
    """
    labeller = Labeller(fresh_network(NARROW, SPEC, 0, "t", 0).eval(), SPEC)
    latents = torch.zeros(6, 1024, 1, 1)
    distilled = labeller.label(small_set(2, codes={"latents": latents, "log_variance": latents}))
    assert distilled.storage.total().bytes == 2 * 6 * 1024 * 4 + 6 * (8 + 6)
    protocol = protocol_of(tmp_path, samples=4, mean_images="always")
    found = work_of(
        distilled, data, protocol, repeats=1, budgets=[1], labeller=labeller, sampler=NEVER_CALLED
    )
    work = {s.name: (cost.epochs, cost.images_per_epoch, cost.steps) for s, _, cost in found}
    own = {"distilled": (8, 12, 16), "distilled_hard": (8, 12, 16), "distilled_ipc1": (8, 6, 8)}
    full = {"full_real": (2, 24, 8), "full_real_steps": (4, 24, 16)}
    expected = own | full | {"random_real_ipc1": (8, 3, 8)}
    for kind in ("random_real", "nearest_real", "easy_real"):
        expected |= {kind: (8, 6, 8), f"{kind}_soft": (8, 6, 8), f"{kind}_bytes": (8, 15, 24)}
        expected |= {f"{kind}_bytes_steps": (5, 15, 15), f"{kind}_bytes_soft": (8, 15, 24)}
        expected |= {f"{kind}_steps": (16, 6, 16)}
    assert work == expected
    report = evaluate(
        distilled,
        None,
        data,
        protocol,
        1,
        budgets=[1],
        labeller=labeller,
        sampler=lambda _: distilled.images,
        num_workers=1,
        progress=False,
    )
    counted = {name: of["training"] for name, of in report.facts["cost"].items()}
    assert {course.name: cost.to_dict() for course, _, cost in found} == counted


def test_more_images_take_the_epochs_of_their_number(data, tmp_path):
    """By images per class; with several repeats and the codes before the first step."""
    protocol = protocol_of(tmp_path, by_images={2: {"epochs": 5, "batch_size": 4}})
    distilled = small_set(2)
    found = work_of(distilled, data, protocol, baselines=[EqualBytes()], initial=distilled, repeats=3)
    assert [(s.name, n, s.epochs(n), s.batch_size, cost.steps) for s, n, cost in found] == [
        (name, repeat, 5, 4, 10)
        for name in ("distilled", "initial", "random_real_bytes")
        for repeat in range(3)
    ]


def test_other_numbers_of_images_take_their_own_epochs(data, tmp_path):
    """Two codes a class, whose bytes pay for five images of each; equally many steps take the set's batches.

    Means and draws of its 6 codes are 3 batches of 4 an epoch, 15 steps in all: 15 epochs of 3 images, 4 (3.75) of 15.
    """
    protocol = protocol_of(
        tmp_path, by_images={1: {"epochs": 9, "batch_size": 2}, 2: {"epochs": 5, "batch_size": 4}}
    )
    latents = torch.zeros(6, 1024, 1, 1)
    distilled = small_set(2, codes={"latents": latents, "log_variance": latents})
    one, paid = RandomReal(1), EqualBytes()
    chosen = [RandomReal(), one, RandomReal(3), paid, Plain(one), EqualSteps(one), EqualSteps(paid)]
    found = work_of(distilled, data, protocol, baselines=chosen, repeats=1, sampler=NEVER_CALLED)
    assert [(course.part.name, course.epochs(0), course.batch_size) for course, _, _ in found] == [
        ("distilled", 5, 4),
        ("random_real", 5, 4),
        ("random_real_ipc1", 9, 2),
        ("random_real_ipc3", 8, 6),
        ("random_real_bytes", 8, 6),
        (f"random_real_ipc1{PLAIN}", 9, 2),
        ("random_real_ipc1_steps", 15, 4),
        ("random_real_bytes_steps", 4, 4),
    ]


class Late(Baseline):
    """A set whose size is known before it is made."""

    name = "late"

    def __init__(self):
        self.made = []

    def size(self, repeat, setting):
        return Size(3)

    def set_for(self, repeat, setting):
        self.made.append(repeat)
        return small_set(1, seed=repeat).images, torch.arange(3)


def test_a_set_is_made_when_students_ask_for_it_and_once(data, tmp_path):
    late = Late()
    planned, left_out = courses(
        small_set(), Request(data, protocol_of(tmp_path), baselines=[late], repeats=2)
    )
    course = planned[-1]
    assert [student.epochs for student in course.students(["narrow"])] == [8, 8]
    assert (late.made, left_out) == ([], None)
    assert course.training(1) is course.training(1)
    assert late.made == [1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budgets": [4]}, "budget 4: the set's classes have 3 images or more"),
        ({"baselines": [FixedSet("distilled", torch.zeros(1), torch.zeros(1))]}, "distilled is there twice"),
        ({"baselines": [RandomReal(9)]}, r"random_real_ipc9: images per class \(9\) is more than the 8 real"),
        ({"baselines": [EqualBytes(soft=True)]}, "needs what labelled the distilled set"),
    ],
)
def test_what_is_refused_before_any_set_is_made(data, tmp_path, fields, message):
    request = Request(data, protocol_of(tmp_path), **{"baselines": []} | fields)
    with pytest.raises(UserError, match=message):
        courses(small_set(3), request)


def test_a_spread_without_a_sampler(data, tmp_path):
    distilled = small_set(codes={"latents": torch.zeros(3, 2), "log_variance": torch.zeros(3, 2)})
    with pytest.raises(UserError, match="nothing draws them; give a sampler"):
        courses(distilled, Request(data, protocol_of(tmp_path), baselines=[]))


@pytest.mark.parametrize("free", [None, 1])
@pytest.mark.parametrize("samples", ["fresh", 6])
@pytest.mark.parametrize("epochs", [{1: 9, 2: 3}, {1: 2, 2: 8}, {3: 6}])
def test_nested_budgets_have_draws_for_their_own_epochs(data, tmp_path, monkeypatch, epochs, samples, free):
    """A part of the codes is learned as a set of its own is, whose draws are the first rows of the same numbers."""
    if free is not None and samples == "fresh":
        monkeypatch.setattr(training_set, "free_bytes", lambda _: free)
    by_images = {limit: {"epochs": each} for limit, each in epochs.items()}
    protocol = protocol_of(tmp_path, epochs=6, lr=0.5, by_images=by_images, samples=samples)
    codes = {"latents": torch.zeros(9, 4, 1, 1), "log_variance": torch.zeros(9, 4, 1, 1)}
    whole = small_set(3, codes=codes)

    def sampler(generator):
        return torch.randint(0, 256, whole.images.shape, generator=generator, dtype=torch.uint8)

    settings = {"repeats": 1, "baselines": [], "num_workers": 1, "progress": False}
    report = evaluate(whole, None, data, protocol, sampler=sampler, budgets=[1, 2], **settings)
    for budget, rows in ((1, [0, 3, 6]), (2, [0, 1, 3, 4, 6, 7])):
        alone = evaluate(
            whole.first(budget),
            None,
            data,
            protocol,
            sampler=lambda g, rows=rows: sampler(g)[rows],
            **settings,
        )
        for fact in ("training", "units"):
            own, nested = alone.facts["cost"]["distilled"], report.facts["cost"][f"distilled_ipc{budget}"]
            assert nested[fact] == own[fact]
        assert [r.accuracy for r in report.rows if r.set == f"distilled_ipc{budget}"] == [
            alone.rows[0].accuracy
        ]


def test_draws_of_a_nested_budget_that_cannot_be_held(data, tmp_path, monkeypatch):
    """Fewer than its epochs, each of which takes some of all of them; the whole set takes one after the other."""
    monkeypatch.setattr(training_set, "free_bytes", lambda _: 1)
    protocol = protocol_of(tmp_path, epochs=4, by_images={1: {"epochs": 9}}, samples=4)
    codes = {"latents": torch.zeros(6, 4, 1, 1), "log_variance": torch.zeros(6, 4, 1, 1)}
    fields = {"baselines": [], "sampler": NEVER_CALLED}
    work_of(small_set(2, codes=codes), data, protocol, **fields)
    with pytest.raises(UserError, match=r"samples \(4\) means 4 draws of 3 codes"):
        work_of(small_set(2, codes=codes), data, protocol, budgets=[1], **fields)
