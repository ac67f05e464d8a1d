"""Whole evaluations on a small world: equal budgets, equal networks, marks and refusals."""

from functools import partial

import pytest
import torch
from small_world import CLASSES, NARROW, SmallData, protocol_file, small_set, striped

from ldd.artefact.set import DistilledSet
from ldd.errors import UserError
from ldd.evaluation import (
    Baseline,
    FixedSet,
    FullReal,
    Labeller,
    Protocol,
    RandomReal,
    Report,
    Setting,
    SoftLabels,
    evaluate,
)
from ldd.evaluation.baselines.equal import baselines_by_name
from ldd.evaluation.comparison import _is_seen, compare
from ldd.evaluation.request import Request
from ldd.images import ClassInfo, Labelled
from ldd.networks import VGG11, ResNet18, ViT
from ldd.students.training import fresh_network

TINY_VIT = partial(ViT, patch_size=16, dim=8, depth=1, heads=2)
NETWORKS = {"narrow": NARROW, "vit": TINY_VIT}


@pytest.fixture
def run(tmp_path):
    """`evaluate` on the small world, in this process."""
    protocol = Protocol.load(protocol_file(tmp_path))

    def call(distilled=None, networks=NETWORKS, data=None, **settings):
        settings = {"protocol": protocol, "repeats": 2, "num_workers": 1, "progress": False} | settings
        settings = {"baselines": [RandomReal(), FullReal()]} | settings
        return evaluate(distilled or small_set(), networks, data or SmallData(), **settings)

    return call


@pytest.fixture
def setting():
    data = SmallData()
    data.setup()
    return Setting(data, [2, 1, 3], seed=0)


def test_random_real_is_an_equal_budget(setting):
    images, labels = RandomReal().set_for(0, setting)
    assert labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert images.dtype == torch.uint8
    for image, label in zip(images, labels.tolist(), strict=True):
        assert any(torch.equal(image, real) for real in setting.data.train_images.of_class(label))
    assert len({image.numpy().tobytes() for image in images}) == 6  # no image twice


def test_random_real_is_drawn_anew_per_repeat(setting):
    first = RandomReal().set_for(0, setting).images
    assert torch.equal(first, RandomReal().set_for(0, setting).images)
    assert not torch.equal(first, RandomReal().set_for(1, setting).images)
    assert not torch.equal(first, RandomReal().set_for(0, Setting(setting.data, [2, 1, 3], seed=1)).images)


def test_random_real_from_a_class_that_is_too_small(setting):
    with pytest.raises(
        UserError,
        match=r"random_real: images per class \(9\) is more than the 8 real images of class 1; lower it",
    ):
        RandomReal().set_for(0, Setting(setting.data, [1, 9, 1], seed=0))


def test_rows(run):
    report = run(
        small_set(2, seen_networks=["ldd.networks.convnet.ConvNet"]), initial=small_set(2, 9), step=40
    )
    found = [(r.set, r.network, r.unseen, r.repeat) for r in report.rows]
    unseen = {"narrow": False, "vit": True}
    repeats = {"distilled": 2, "initial": 2, "random_real": 2, "full_real": 1}
    assert found == [(s, n, unseen[n], r) for s in repeats for n in unseen for r in range(repeats[s])]
    assert {(r.step, r.seed, r.protocol) for r in report.rows} == {(40, 0, "small")}
    assert all(0 <= r.accuracy <= 1 and r.seconds > 0 for r in report.rows)
    assert report.facts["images_per_set"] == {"distilled": 6, "initial": 6, "random_real": 6, "full_real": 24}
    assert report.facts["test_images"] == 30


def test_every_nth_test_image(run, tmp_path, monkeypatch):
    seen = []
    from ldd.evaluation import records

    def run_students(lesson, students, sets, test, **rest):
        seen.append(test)
        return {student: records.Outcome(0.0, 1.0) for student in students}

    monkeypatch.setattr(records, "run_students", run_students)
    data = SmallData()
    report = run(data=data, protocol=Protocol.load(protocol_file(tmp_path, test_every=4)))
    assert torch.equal(seen[0].images, data.test_images.images[[0, 4, 8, 12, 16, 20, 24, 28]])
    assert torch.equal(seen[0].labels, data.test_images.labels[[0, 4, 8, 12, 16, 20, 24, 28]])
    assert report.facts["test_images"] == 8


def test_an_evaluation_is_repeatable(run):
    accuracies = [[r.accuracy for r in run(seed=seed).rows] for seed in (0, 0, 1)]
    assert accuracies[0] == accuracies[1] != accuracies[2]


def test_sets_are_on_equal_footing(run):
    distilled = small_set()
    twin = FixedSet("twin", distilled.images, distilled.labels)
    scores = run(distilled, baselines=[twin]).scores()
    assert scores["twin"] == scores["distilled"]


def test_full_real_trains_for_its_own_epochs(run, monkeypatch):
    trained = []
    from ldd.evaluation import records

    def run_students(lesson, students, sets, test, **rest):
        trained.extend((s.set, s.epochs) for s in students)
        raise KeyboardInterrupt

    monkeypatch.setattr(records, "run_students", run_students)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert set(trained) == {("distilled", 4), ("random_real", 4), ("full_real", 2)}


def test_networks_of_the_protocol_and_step_of_the_manifest(run):
    report = run(small_set().with_facts(step=12), None, baselines=())
    assert {(r.network, r.step) for r in report.rows} == {("narrow", 12)}
    assert {r.step for r in run(small_set(), None, baselines=()).rows} == {0}


def test_seen_by_another_name_of_the_class(run):
    report = run(small_set(seen_networks=["ldd.networks.ViT", "gone.Away"]), baselines=())
    assert {r.network: r.unseen for r in report.rows} == {"narrow": True, "vit": False}


def test_uint8_as_saved_is_what_students_see(run, tmp_path):
    distilled = small_set(2)
    distilled.save(tmp_path / "set")
    loaded = DistilledSet.load(tmp_path / "set")
    assert run(loaded, baselines=()).scores() == run(distilled, baselines=()).scores()


def test_other_classes_are_refused(run):
    images, labels = striped(1, 3)
    swapped = [CLASSES[0], ClassInfo(1, 12, "n2", "blue"), ClassInfo(2, 11, "n1", "green")]
    with pytest.raises(UserError, match=r"class 1 of the set is n2 but n1 in the data; .*in the same order"):
        run(DistilledSet.from_images(images, labels, swapped))
    with pytest.raises(UserError, match="class 2 of the set is None but n2 in the data"):
        run(DistilledSet.from_images(images[:2], labels[:2], CLASSES[:2]))


def test_another_size_is_refused(run):
    images = torch.zeros(3, 3, 48, 48, dtype=torch.uint8)
    with pytest.raises(
        UserError, match=r"data.image_size \(32\) differs .* \(48 px\); set data.image_size to 48"
    ):
        run(DistilledSet.from_images(images, torch.arange(3), CLASSES))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 0}, r"repeats \(0\) must be at least 1"),
        ({"num_workers": -1}, r"num_workers \(-1\)"),
        ({"networks": {}}, "networks is empty"),
        ({"protocol": "fast"}, r"protocol \(fast\) is not known"),
        ({"baselines": [RandomReal(), RandomReal()]}, "random_real is there twice"),
    ],
)
def test_bad_settings(run, settings, message):
    with pytest.raises(UserError, match=message):
        run(**settings)


def test_baselines_by_name():
    assert baselines_by_name("") == ()
    assert [type(b) for b in baselines_by_name("full_real, random_real")] == [FullReal, RandomReal]
    assert [b.name for b in baselines_by_name(f"random_real,{__name__}.Black")] == [
        "random_real",
        "black",
    ]
    for name in ("herding", "no.such.Class", "ldd.networks.ConvNet", "ldd.evaluation.FixedSet"):
        with pytest.raises(
            UserError, match=f"baselines: '{name}' is unknown; choose from random_real, nearest_real"
        ):
            baselines_by_name(name)
    with pytest.raises(UserError, match=r"full_real.repeats \(0\)"):
        FullReal(repeats=0)


class Black(Baseline):
    """A user's own baseline: one class in one file."""

    name = "black"

    def set_for(self, repeat, setting):
        return Labelled(
            torch.zeros(len(setting.counts), 3, 32, 32, dtype=torch.uint8), torch.arange(len(setting.counts))
        )


def test_a_baseline_of_the_users_own(run):
    assert {r.set for r in run(baselines=[RandomReal(), FullReal(), Black()]).rows} == {
        "distilled",
        "random_real",
        "full_real",
        "black",
    }


def test_nested_budgets_are_sets_of_their_own(run):
    """The first images of each class give the accuracies that a set of them alone gives; random real ones likewise."""
    whole = small_set(3, codes={"latents": torch.arange(9.0)}, weights=torch.arange(9.0))
    report = run(whole, budgets=(2, 1, 3), step=5)
    assert list(report.facts["images_per_set"].items()) == [
        ("distilled", 9),
        ("random_real", 9),
        ("full_real", 24),
        ("distilled_ipc1", 3),
        ("distilled_ipc2", 6),
        ("random_real_ipc1", 3),
        ("random_real_ipc2", 6),
    ]
    for budget, rows in ((1, [0, 3, 6]), (2, [0, 1, 3, 4, 6, 7])):
        part = whole.first(budget)
        assert torch.equal(part.images, whole.images[rows])
        assert part.codes["latents"].tolist() == part.weights.tolist() == rows
        alone = run(DistilledSet.from_images(whole.images[rows], whole.labels[rows], CLASSES))
        for name in ("distilled", "random_real"):
            expected = [row.accuracy for row in alone.rows if row.set == name]
            assert [row.accuracy for row in report.rows if row.set == f"{name}_ipc{budget}"] == expected
    again = run(small_set(3, seed=4), budgets=(1,), baselines=[], step=6).after(report)
    steps = {(row.set, row.step) for row in again.rows if row.set.startswith("distilled")}
    assert steps == {("distilled", 5), ("distilled", 6), ("distilled_ipc1", 5), ("distilled_ipc1", 6)} | {
        ("distilled_ipc2", 5)
    }


def test_budgets_beyond_the_set(run):
    for budget in (0, 4):
        with pytest.raises(UserError, match=rf"budget {budget}: the set's classes have 3 images or more"):
            run(small_set(3), budgets=(budget,))


@pytest.mark.parametrize(
    ("seen", "unseen"),
    [
        ("resnet18", {"r18": False, "vgg": True, "vit": True}),
        ("resnet50", {"r18": True, "vgg": True, "vit": True}),
        ("vgg11_bn", {"r18": True, "vgg": False, "vit": True}),
        ("vit_b_16", {"r18": True, "vgg": True, "vit": True}),  # another depth and width than ours
    ],
)
def test_an_architecture_of_torchvision_is_seen_by_its_name(seen, unseen):
    networks = {"r18": ResNet18, "vgg": VGG11, "vit": partial(ViT, dim=8, depth=1, heads=2)}
    found = {
        name: not _is_seen(network(2, 32), {f"torchvision.models.{seen}"})
        for name, network in networks.items()
    }
    assert found == unseen


@pytest.mark.parametrize(
    ("labels", "fact", "baselines"),
    [("teacher", "teacher", ()), ("own", "labeller", (SoftLabels(RandomReal()),))],
)
def test_a_report_keeps_to_one_network_of_soft_labels(tmp_path, labels, fact, baselines):
    """Its labels are all that a table of one protocol holds; hard ones may join, and those of another may not."""
    protocol = Protocol.load(protocol_file(tmp_path, labels=labels))
    network = fresh_network(NARROW, SmallData.spec, 0, "t", 0).eval()

    def added(name, source, **changes):
        facts = {"network": source, "classes": (1, 2), "selection_accuracy": {"1": len(name)}}
        labeller = None if source is None else Labeller(network, SmallData.spec, facts=facts)
        settings = {
            "baselines": baselines,
            "labeller": labeller,
            "records": tmp_path / name,
            "progress": False,
        }
        settings |= {"repeats": 1, "num_workers": 1} | changes
        earlier = Report.read(tmp_path)
        report = compare(
            small_set(), Request(SmallData(), protocol, {name: NARROW}, **settings), earlier=earlier
        )
        (report if earlier is None else report.after(earlier)).write(tmp_path)
        return Report.read(tmp_path)

    assert added("first", "good").facts[fact]["network"] == "good"
    if labels == "own":  # without any soft labels, and with a labeller that no set asks
        added("hard", None, baselines=())
        assert added("unasked", "bad", baselines=()).facts[fact]["network"] == "good"
    with pytest.raises(
        UserError, match=rf"\({fact}: network then 'good', now 'bad'\); give the same --labels"
    ):
        added("other", "bad")
    assert not (tmp_path / "other").exists()  # no student was trained
    assert {row.network for row in added("another", "good").rows} >= {"first", "another"}


@pytest.mark.parametrize(("per_class", "last"), [(1, None), (8, None), (9, 2), (11, None)])
def test_a_last_batch_of_few_images_is_told(run, tmp_path, recwarn, per_class, last):
    protocol = Protocol.load(protocol_file(tmp_path, batch_size=25))
    run(small_set(per_class), networks={"narrow": NARROW}, protocol=protocol, baselines=[], repeats=1)
    told = f"distilled: {3 * per_class} images in batches of 25 leave a last one of {last}, whose step is as long"
    assert [str(one.message).startswith(told) for one in recwarn if "last one of" in str(one.message)] == (
        [] if last is None else [True]
    )


def test_a_rate_of_a_network_that_nothing_imported_is_told(run, tmp_path, recwarn):
    rates = {
        "mine.Wide": 0.1,
        "ldd.networks.VGG11": 0.1,
    }  # of a network that is there, but is not evaluated here
    protocol = Protocol.load(protocol_file(tmp_path, network_lr=rates))
    run(networks={"narrow": NARROW}, protocol=protocol, baselines=[], repeats=1)
    assert [str(one.message) for one in recwarn if "network_lr" in str(one.message)] == [
        "protocol small: network_lr (mine.Wide) names no network there is; its rate has no use"
    ]
