"""Baselines that choose: nearest, easy, samples; equal images, bytes and steps, with hard and with soft labels."""

import pytest
import torch
from small_world import NARROW, SPEC, SmallData, protocol_file, small_set
from torch.nn import functional as F

from ldd.errors import UserError
from ldd.evaluation import EasyReal, Labeller, NearestReal, PriorSamples, Protocol, Setting, evaluate
from ldd.evaluation.baselines.chosen import nearest_to_centroids, real_losses
from ldd.evaluation.baselines.equal import baselines_by_name
from ldd.evaluation.features import pixels
from ldd.images import ClassInfo, to_bytes
from ldd.priors import LatentDiffusionPrior
from ldd.runtime.seeding import generator
from ldd.students.training import fresh_network


@pytest.fixture
def setting():
    data = SmallData()
    data.setup()
    return Setting(data, [1, 2, 3], seed=0)


def belongs(images, labels, real):
    return all(
        any(torch.equal(image, one) for one in real.of_class(label))
        for image, label in zip(images, labels.tolist(), strict=True)
    )


def test_one_nearest_image_is_nearest_to_the_mean(setting):
    real = setting.data.train_images
    images, labels = NearestReal().pick([1, 0, 1], setting, "a")
    assert labels.tolist() == [0, 2]
    for image, label in zip(images, (0, 2), strict=True):
        own = real.of_class(label).double() / 255
        distances = [(one - own.mean(0)).square().sum().sqrt().item() for one in own]
        assert torch.equal(image, real.of_class(label)[distances.index(min(distances))])


def test_nearest_to_centroids_of_clear_clusters():
    """Three tight clusters: one point of each, and no point twice where centroids share one."""
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    noise = 0.1 * torch.randn(30, 2, generator=generator(0))
    points = centres.repeat_interleave(10, 0) + noise
    chosen = nearest_to_centroids(points, 3, seed=1)
    assert sorted((chosen // 10).tolist()) == [0, 1, 2]
    for place in chosen.tolist():
        cluster = points[place // 10 * 10 : place // 10 * 10 + 10]
        distances = (cluster - cluster.mean(0)).norm(dim=1)
        assert torch.equal(points[place], cluster[distances.argmin()])
    assert sorted(nearest_to_centroids(points[:4], 4, seed=0).tolist()) == [0, 1, 2, 3]


def test_large_images_are_averaged_over_squares():
    images = torch.randint(0, 256, (2, 3, 64, 64), generator=generator(0)).byte()
    assert torch.allclose(pixels(images), F.avg_pool2d(images / 255, 2).flatten(1), atol=1e-6)


def test_sets_are_real_and_repeatable(setting):
    for baseline in (NearestReal(), EasyReal()):
        images, labels = baseline.set_for(0, setting)
        assert labels.tolist() == [0, 1, 1, 2, 2, 2]
        assert belongs(images, labels, setting.data.train_images)
        assert len({image.numpy().tobytes() for image in images}) == 6
        assert torch.equal(images, baseline.set_for(0, setting).images)
        with pytest.raises(UserError, match=rf"{baseline.name}: images per class \(9\) is more than the 8"):
            baseline.pick([9, 1, 1], setting, "a")


def test_easy_images_have_the_least_loss(setting):
    real = setting.data.train_images
    images, _ = EasyReal().set_for(0, setting)
    losses = real_losses(setting)
    start = 0
    for label, count in enumerate(setting.counts):
        own = losses[8 * label : 8 * label + 8].tolist()
        wanted = sorted(range(8), key=lambda i: own[i])[:count]
        for image, place in zip(images[start : start + count], wanted, strict=True):
            assert torch.equal(image, real.of_class(label)[place])
        start += count
    assert setting.found["losses"].equal(losses)


def test_samples_are_the_priors_own(tiny_prior_path, setting):
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)
    known = prior.classes[:3]
    setting.data.spec = SPEC.__class__(
        [ClassInfo(i, info.id, info.wnid, info.name) for i, info in enumerate(known)],
        prior.image_size,
        SPEC.mean,
        SPEC.std,
        SPEC.fingerprint,
    )
    with pytest.raises(UserError, match="prior_samples needs the prior that the set was made through"):
        PriorSamples().set_for(0, setting)
    setting = Setting(setting.data, setting.counts, setting.seed, prior=prior)
    samples = PriorSamples(num_steps=3, guidance_scale=1.5)
    images, labels = samples.set_for(1, setting)
    assert labels.tolist() == [0, 1, 1, 2, 2, 2]
    rows = prior.rows(setting.data.spec.classes)[2].expand(3)
    draws = generator(0, "prior_samples", 1, 2)
    with torch.no_grad():
        expected = prior.decode(prior.sample(rows, draws, num_steps=3, guidance_scale=1.5))
    assert torch.equal(images[3:], to_bytes(expected))
    empty = samples.pick([0, 1, 0], setting, "some")
    assert (empty.labels.tolist(), len(empty.images)) == ([1], 1)
    with torch.no_grad():
        for weights in prior.autoencoder.parameters():
            weights.fill_(torch.nan)
    with pytest.raises(UserError, match=r"the prior draws NaN or infinite values of class .*; its weights"):
        PriorSamples(num_steps=2).size(0, Setting(setting.data, setting.counts, 0, prior=prior))


def test_names():
    known = {
        "nearest_real": "nearest_real",
        "easy_real_bytes": "easy_real_bytes",
        "random_real_soft": "random_real_soft",
        "nearest_real_bytes_soft_steps": "nearest_real_bytes_soft_steps",
        "full_real_steps": "full_real_steps",
    }
    for name, expected in known.items():
        (found,) = baselines_by_name(name)
        assert found.name == expected
        assert found.equal_steps == name.endswith("_steps")
    with pytest.raises(UserError, match="'full_real_bytes' is unknown"):
        baselines_by_name("full_real_bytes")
    with pytest.raises(UserError, match="'random_real_steps_bytes' is unknown"):
        baselines_by_name("random_real_steps_bytes")
    found = baselines_by_name("nearest_real,equal,full_real", baselines_by_name("full_real,easy_real"))
    assert [part.name for part in found] == ["nearest_real", "full_real", "easy_real"]  # each once


def test_equal_steps_and_labels_in_a_whole_evaluation(tmp_path):
    """24 real images in batches of 6 are 4 steps an epoch; the set's students take 8 epochs of one step."""
    labeller = Labeller(fresh_network(NARROW, SPEC, 0, "t", 0).eval(), SPEC)
    protocol = Protocol.load(protocol_file(tmp_path, epochs=8, batch_size=6))
    baselines = baselines_by_name("full_real_steps,nearest_real_soft,nearest_real_bytes_soft")
    distilled = labeller.label(small_set(2))
    settings = {"labeller": labeller, "num_workers": 1, "progress": False, "baselines": baselines}
    report = evaluate(distilled, None, SmallData(), protocol, 1, **settings)
    cost = report.facts["cost"]
    assert cost["full_real_steps"]["training"]["epochs"] == 2
    assert cost["full_real_steps"]["training"]["steps"] == cost["distilled"]["training"]["steps"] == 8
    for name in ("nearest_real_soft", "nearest_real_bytes_soft"):
        assert cost[name]["storage"]["bytes"] == cost["distilled"]["storage"]["bytes"]
        assert cost[name]["training"]["images_per_epoch"] == 6
    with pytest.raises(UserError, match="nearest_real_soft needs what labelled the distilled set"):
        evaluate(distilled, None, SmallData(), protocol, 1, baselines=baselines[1:2], progress=False)
