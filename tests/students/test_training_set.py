"""What each epoch of a student sees, counted and compared by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from small_world import NARROW, SPEC, protocol_file, small_set, striped

from ldd.errors import UserError
from ldd.evaluation import Protocol, TrainingSet, train_student
from ldd.evaluation.baselines.stored import StoredSet
from ldd.images import Labelled
from ldd.runtime.seeding import seeded
from ldd.students import training_set as module
from ldd.students.training import Lesson, Student
from ldd.students.training_set import by_epoch, draws_for, draws_of
from ldd.students.workers import run_students

EPOCHS = 4


@pytest.fixture
def protocol(tmp_path):
    return lambda **changes: Protocol.load(protocol_file(tmp_path, epochs=EPOCHS, **changes))


def numbered(count, soft=False):
    """Three codes whose draw p of code i is filled with 10 p + i; the means with 200 + i."""
    rows, draws = torch.arange(3), torch.arange(count)

    def filled(values):
        return values.to(torch.uint8)[..., None, None, None].expand(*values.shape, 3, 4, 4)

    labels = torch.eye(3)[rows] * 0.9 + 1 / 30 if soft else rows
    return TrainingSet(filled(200 + rows), labels, filled(10 * draws[:, None] + rows) if count else None)


def values(part: Labelled):
    return part.images[:, 0, 0, 0].tolist()


def test_fresh_draws_come_once_each(protocol):
    epoch = by_epoch(numbered(EPOCHS), protocol(), EPOCHS, seed=0)
    for e in range(EPOCHS):
        assert values(epoch(e)) == [200, 201, 202, 10 * e, 10 * e + 1, 10 * e + 2]
        assert epoch(e).labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_pool_gives_each_code_one_of_its_own(protocol):
    epoch = by_epoch(numbered(2), protocol(mean_images="never"), 40, seed=0)
    seen = [values(epoch(e)) for e in range(40)]
    assert all(value % 10 == code for row in seen for code, value in enumerate(row))
    assert {tuple(value // 10 for value in row) for row in seen} == {
        (a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)
    }
    assert seen == [values(epoch(e)) for e in range(40)], "repeatable"


@pytest.mark.parametrize(
    ("mean_images", "soft", "means"), [("soft", True, True), ("soft", False, False), ("never", True, False)]
)
def test_mean_images(protocol, mean_images, soft, means):
    training, recipe = numbered(EPOCHS, soft), protocol(mean_images=mean_images)
    assert training.size.has_means(recipe) is means
    part = by_epoch(training, recipe, EPOCHS, 0)(1)
    assert values(part) == [200, 201, 202] * means + [10, 11, 12]
    assert torch.equal(part.labels, torch.cat([training.labels] * (1 + means)))


def test_images_alone_are_the_same_in_all_epochs(protocol):
    assert by_epoch(numbered(0), protocol(), EPOCHS, 0) is None


def test_cost(protocol):
    """Decodes: the means once, and each draw."""
    plain = numbered(0).size.cost(protocol(), EPOCHS, 2)
    assert (plain.images_per_epoch, plain.steps, plain.decodes) == (3, 4 * 2, 0)
    drawn = numbered(EPOCHS).size.cost(protocol(), EPOCHS, 2)
    assert (drawn.images_per_epoch, drawn.steps, drawn.decodes) == (6, 4 * 3, 3 * 5)
    alone = numbered(2).size.cost(protocol(mean_images="never"), EPOCHS, 2)
    assert (alone.images_per_epoch, alone.steps, alone.decodes) == (3, 4 * 2, 3 * 2)


def sampler(generator):
    return torch.randint(0, 256, (3, 3, 4, 4), generator=generator).to(torch.uint8)


def draws_of_three(recipe, seed):
    """Draws of three codes."""
    distribution = SimpleNamespace(
        images=torch.zeros(3, 3, 4, 4, dtype=torch.uint8), counts=[1, 1, 1], is_distribution=True
    )
    return draws_for(recipe, distribution, sampler, seed).images


def test_draws_follow_from_seed_and_number(protocol):
    four, two = (draws_of_three(protocol(samples=n), seed=1) for n in (4, 2))
    assert draws_of_three(protocol(), seed=1).equal(four), "fresh: one for each epoch"
    assert torch.equal(four[:2], two)
    assert not torch.equal(four[0], four[1])
    assert not draws_of_three(protocol(samples=2), seed=2).equal(two)


def test_a_set_without_a_spread_or_a_sampler(protocol):
    plain, spread = (
        small_set(),
        small_set(codes={"latents": torch.zeros(3, 2), "log_variance": torch.zeros(3, 2)}),
    )
    assert draws_for(protocol(), plain, None, 0) is None
    assert draws_for(protocol(samples=0), spread, None, 0) is None
    with pytest.raises(UserError, match=r"needs draws \(samples: fresh\), but nothing draws them"):
        draws_for(protocol(), spread, None, 0)


def test_draws_are_made_when_they_are_looked_at(protocol):
    asked = []
    spread = small_set(codes={"latents": torch.zeros(3, 2), "log_variance": torch.zeros(3, 2)})
    draws = draws_for(protocol(samples=2), spread, lambda g: asked.append(g) or spread.images, 0)
    part = draws_of(protocol(samples=2), spread, lambda number: draws[number][[2]])
    assert (draws.count, part.count, asked) == (2, 2, [])
    assert torch.equal(part.images, spread.images[[2]].expand(2, -1, -1, -1, -1))
    assert draws.images.shape == (2, 3, 3, 32, 32)
    assert len(asked) == 2


def test_too_many_draws(protocol, monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda device: 2_880)
    assert len(draws_of_three(protocol(samples=10), seed=1)) == 10  # 10 x 3 x 48 bytes are half of it
    with pytest.raises(
        UserError, match=r"samples \(11\) means 11 draws of 3 codes.*number of samples below 10"
    ):
        draws_of_three(replace(protocol(samples=11), epochs=12), seed=1)


def test_draws_that_do_not_fit_are_made_in_their_epochs(protocol, monkeypatch):
    """The same students; one draw is there at a time, and two sets of one evaluation share it."""
    recipe, made = protocol(mean_images="never"), []
    spread = small_set(codes={"latents": torch.zeros(3, 2), "log_variance": torch.zeros(3, 2)})

    def sampler(generator):
        made.append(generator.initial_seed())
        return torch.randint(0, 256, spread.images.shape, generator=generator).to(torch.uint8)

    def outcomes(workers):
        draws = draws_for(recipe, spread, sampler, seed=3)
        turned = draws_of(recipe, spread, lambda number: draws[number][[2, 0, 1]])
        sets = {
            ("all", 0): StoredSet("all", spread, samples=draws).training,
            ("turned", 0): StoredSet("turned", spread, samples=turned).training,
        }
        students = [Student(name, "narrow", repeat, EPOCHS) for name, repeat in sets]
        lesson, test = Lesson(SPEC, recipe, {"narrow": NARROW}, 7), Labelled(*striped(10, 2))
        found = run_students(lesson, students, sets, test, device=torch.device("cpu"), num_workers=workers)
        return draws, [outcome.accuracy for outcome in found.values()]

    held, expected = outcomes(1)
    assert (held.held, len(made)) == (True, EPOCHS)
    monkeypatch.setattr(module, "free_bytes", lambda device: 1)
    draws, found = outcomes(2)  # draws are not sent to workers, nor is what makes them
    assert (draws.held, found) == (False, expected)
    assert made[EPOCHS:] == made[:EPOCHS] * 2, "each student's epochs in turn"
    assert draws[0] is draws[0]


def test_training_on_draws_is_training_on_each_epochs_images(protocol):
    """One batch an epoch without augmentation: the same as four single epochs with the schedule's rates by hand."""
    recipe = protocol(augmentations=[], batch_size=100, momentum=0.0, weight_decay=0.0)
    images, labels = striped(1, 3)
    samples = torch.stack([striped(1, seed)[0] for seed in range(10, 10 + EPOCHS)])
    soft = torch.eye(3)[labels] * 0.7 + 0.1
    training = TrainingSet(images, soft, samples)
    with seeded(0, "network"):
        student, expected = NARROW(3, 32), NARROW(3, 32)
    expected.load_state_dict(student.state_dict())
    train_student(student, training, SPEC, recipe, epochs=EPOCHS, seed=5)
    for epoch in range(EPOCHS):
        batch = SPEC.normalise(torch.cat([images, samples[epoch]]).float() / 127.5 - 1)
        loss = -(torch.cat([soft, soft]) * expected(batch).log_softmax(1)).sum(1).mean()
        rate = recipe.lr * recipe.lr_at(epoch, EPOCHS)
        for parameter, gradient in zip(
            expected.parameters(), torch.autograd.grad(loss, list(expected.parameters())), strict=True
        ):
            parameter.data -= rate * gradient
    for one, other in zip(student.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_workers_see_the_same_draws(protocol):
    training = TrainingSet(*striped(1, 3), torch.stack([striped(1, seed)[0] for seed in range(EPOCHS)]))
    lesson = Lesson(SPEC, protocol(), {"narrow": NARROW}, 7)
    students = [Student("a", "narrow", repeat, EPOCHS) for repeat in range(2)]
    sets = {("a", repeat): training for repeat in range(2)}
    test = Labelled(*striped(10, 2))
    here, there = (
        run_students(lesson, students, sets, test, device=torch.device("cpu"), num_workers=n) for n in (1, 2)
    )
    assert [o.accuracy for o in here.values()] == [o.accuracy for o in there.values()]
