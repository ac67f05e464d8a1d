"""Ten thousand images of a thousand classes: what is held and how often they are listed, counted instead of timed."""

from collections import Counter
from functools import partial

import pytest
import torch

from benchmarks import thousand_classes
from benchmarks.thousand_classes import SIZE, synthetic_source
from ldd.data import DistillationData, EL2NPruner, RandomPruner, ScoringNetwork
from ldd.data.pruning import CrossFittedLossPruner, HerdingPruner
from ldd.distiller.memory import peak_bytes
from ldd.evaluation.baselines.base import Setting
from ldd.evaluation.baselines.chosen import real_losses
from ldd.experts.recording import record_experts
from ldd.images import ImageRows, rows_by_label
from ldd.networks import ConvNet
from ldd.networks.scoring import by_class, judged
from ldd.networks.training import accuracy, train_classifier

TINY = partial(ConvNet, width=1, depth=4)
IMAGE = 3 * SIZE**2  # bytes
CPU = torch.device("cpu")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, for the hashes, and batches of 32, which weigh little beside all images."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("ldd.networks.scoring.CHUNK", 32)


def data(tmp_path, classes, per_class, pruner=None):
    return DistillationData(
        synthetic_source(classes, per_class),
        image_size=SIZE,
        cache_dir=str(tmp_path / "cache"),
        pruner=pruner,
    )


def beyond(function, mapped=0):
    """Peak bytes of tensors in a function, without those of so many images that it maps."""
    peak = peak_bytes(function) - mapped * IMAGE
    print(f"{peak / IMAGE:.0f} images")
    return peak


def test_a_warm_start_reads_no_image_and_holds_none(tmp_path, home, monkeypatch):
    first = data(tmp_path, 1000, 10)
    assert beyond(partial(first.setup, "fit"), mapped=12_000) < 10_000 * IMAGE / 4
    listed, asked, kind = Counter(), Counter(), type(first.source)

    def items(self, split):
        listed[split] += 1
        return plain(self, split)

    plain = kind.items
    monkeypatch.setattr(kind, "items", items, raising=False)
    monkeypatch.setattr(kind, "read", None)
    monkeypatch.setattr(kind, "stamp", lambda self, item: asked.update([item.key.split("/")[0]]) or "3072")
    again = DistillationData(
        kind, image_size=SIZE, cache_dir=str(tmp_path / "cache"), pruner=RandomPruner(0.5)
    )
    assert beyond(partial(again.setup, "fit"), mapped=12_000) < 10_000 * 8 * 10  # ten numbers for each image
    assert listed == {"train": 2, "selection": 2, "test": 3}
    assert asked == {
        "train": 25_000,
        "selection": 2_000,
        "test": 3_000,
    }  # half of the training images are kept
    assert (
        dict(again.fingerprints).items()
        >= dict(first.fingerprints, core_set=again.fingerprints["core_set"]).items()
    )
    asked.clear()
    DistillationData(kind, image_size=SIZE, cache_dir=str(tmp_path / "cache")).setup("fit")
    assert asked["train"] == 20_000  # all of them are the core-set, whose hashes are known
    assert isinstance(again.core_set.at_hand, ImageRows)
    assert again.core_set.at_hand[torch.arange(3)].equal(again.core_set.take(torch.arange(3)))
    draws = [torch.Generator().manual_seed(label) for label in range(1000)]
    drawn = 1000 * 2 * IMAGE
    assert (
        beyond(lambda: again.core_set.gathered(again.core_set.draw_places(range(1000), 2, draws)))
        < 10 * drawn
    )


def test_experts_learn_what_is_kept_without_a_copy_of_it(tmp_path, home):
    pruned = data(tmp_path, 100, 40, RandomPruner(0.5))
    pruned.setup()
    whole = pruned.core_set.nbytes

    def record(where):
        return record_experts(
            pruned, TINY, 1, epochs=1, batch_size=16, out=str(tmp_path / where), progress=False
        )

    assert beyond(lambda: record("a")) < whole / 2
    pruned.core_set = pruned.core_set.to(torch.device("cpu"))
    copied = pruned.core_set.take(torch.arange(len(pruned.core_set)))
    network, again = TINY(100, SIZE), TINY(100, SIZE)
    again.load_state_dict(network.state_dict())
    how = {
        "epochs": 1,
        "batch_size": 64,
        "optimizer": partial(torch.optim.SGD, lr=0.01),
        "normalise": pruned.spec.as_input,
    }
    for one, images in ((network, pruned.core_set.at_hand), (again, copied)):
        train_classifier(one, images, pruned.core_set.labels, **how)
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("kind", ["el2n", "cross-fitted", "herding"])
def test_trained_criteria_hold_neither_images_nor_logits(kind, tmp_path, home, monkeypatch):
    """The same scores from a mapped file as from memory; of the images and their logits a part is there at a time."""
    training = ScoringNetwork(TINY, epochs=1, batch_size=64, device="cpu")
    made = {
        "el2n": partial(EL2NPruner, 0.5, networks=1),
        "cross-fitted": partial(CrossFittedLossPruner, 0.5, folds=2),
        "herding": partial(HerdingPruner, 0.5),
    }[kind]
    source = synthetic_source(500, 4)(None)
    mapped, held = (made(training=training, cache_dir=None) for _ in range(2))
    mapped.decoded_in = str(tmp_path / "cache")
    spec, items = data(tmp_path, 500, 4).spec, source.items("train")
    tables = []
    mapped.score(source, items, spec, 0)  # decodes
    with monkeypatch.context() as patched:
        patched.setattr("ldd.data.splits.decode", None)
        peak = beyond(lambda: tables.append(mapped.score(source, items, spec, 0)), mapped=2000)
    assert peak < 2000 * IMAGE * 0.9
    assert tables[0].rows.equals(held.score(source, items, spec, 0).rows)


def test_logits_and_features_are_never_there_all_at_once(tmp_path, home):
    spec = data(tmp_path, 1000, 1).spec
    images = torch.randint(0, 256, (2000, 3, SIZE, SIZE), dtype=torch.uint8)
    labels = torch.arange(1000).repeat_interleave(2)
    network, logits = TINY(1000, SIZE).eval(), 2000 * 1000 * 4
    right = []
    judge = lambda out, truth: out.argmax(1) == truth  # noqa: E731
    for function in (
        lambda: judged(network, spec, images, labels, judge, CPU).float().mean(),
        lambda: torch.tensor(accuracy(network, images, labels, batch_size=32, normalise=spec.as_input)),
    ):
        assert beyond(lambda function=function: right.append(function())) < logits / 2
    assert right[0] == right[1].float()


def test_losses_of_all_real_images_take_little_more_than_a_batch(tmp_path, home, monkeypatch):
    monkeypatch.setattr("ldd.evaluation.features.EPOCHS", 1)
    monkeypatch.setattr("ldd.evaluation.features.WIDTH", 4)
    real = data(tmp_path, 500, 4)
    real.setup()
    losses = []
    assert beyond(lambda: losses.append(real_losses(Setting(real, [1] * 500, 0)))) < 2000 * IMAGE
    assert losses[0].shape == (2000,)


def test_parts_are_put_together_by_class():
    labels = torch.tensor([0] * 5 + [2] * 1 + [3] * 7)
    values = torch.arange(13)
    for size in (1, 4, 13):
        found = [part.tolist() for part in by_class(values.split(size), labels)]
        assert found == [values[rows].tolist() for _, rows in rows_by_label(labels)]
    shuffled = labels[torch.randperm(13, generator=torch.Generator().manual_seed(0))]
    for label, rows in rows_by_label(shuffled):
        assert rows.equal((shuffled == label).nonzero().flatten())
    assert [label for label, _ in rows_by_label(shuffled)] == [0, 2, 3]


def test_growth_is_fitted_to_powers():
    table = {"a": {size: (3e-6 * size**1.5, 7.0) for size in (10**4, 10**5, 10**6)}}
    found = thousand_classes.fitted(table)
    assert found["a_cpu_seconds_exponent"] == pytest.approx(1.5, abs=1e-9)
    assert found["a_peak_mib_exponent"] == pytest.approx(0, abs=1e-9)
    assert found["a_cpu_seconds_per_million"] == pytest.approx(3000, abs=1e-6)
