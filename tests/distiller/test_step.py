"""The step's data path: real images in one gather as a loop would draw them; nothing asks the device back."""

from functools import partial

import pytest
import torch
from host_reads import HostReads
from small_runs import NARROW, fit, matching
from torch import Tensor
from torch.optim import SGD

from ldd.codes import GaussianCodes, PointCodes
from ldd.distiller.finite import _Later
from ldd.distiller.module import Distiller
from ldd.distiller.step import DistillationStep
from ldd.experts.recording import record_experts
from ldd.objectives import (
    Alternating,
    GradientMatching,
    MaximumMeanDiscrepancy,
    RBFMixture,
    TrajectoryMatching,
)
from ldd.priors import DeconvolutionPrior, LatentDiffusionPrior, PixelPrior
from ldd.runtime.seeding import generator


def step_of(digits, rank=0, world_size=1, **arguments):
    model = Distiller(PixelPrior(32), matching(), digits.spec, seed=4, **arguments)
    return model.context(digits.core_set, 6, rank, world_size)


def one_class(digits, label, n):
    """A class's draw written out: images of the class in their order, by a permutation of its own."""
    images = digits.core_set.images[digits.core_set.labels == label]
    order = torch.randperm(len(images), generator=generator(4, "real", 6, label))
    return images[order[:n]].float() / 127.5 - 1


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 3)])
def test_real_classes_are_bit_identical_to_a_loop(digits, rank, world_size):
    step = step_of(digits, rank, world_size)
    images, labels = step.real_classes(5)
    shard = range(rank, 10, world_size)
    assert torch.equal(images, torch.cat([one_class(digits, label, 5) for label in shard]))
    assert labels.tolist() == [label for label in shard for _ in range(5)]
    assert torch.equal(step.real(3, 2), one_class(digits, 3, 2))
    chosen = step.real_classes(2, torch.tensor([7, 0])).images
    assert torch.equal(chosen, torch.cat([one_class(digits, label, 2) for label in (7, 0)]))


def test_labels_on_the_host(digits):
    step = step_of(digits, 1, 2, images_per_class=2, chunk_size=4, checkpointing="never")
    assert torch.equal(step.labels_on_host, step.labels)
    assert torch.equal(step.all_labels_on_host, step.all_labels)
    assert step.labels_on_host.tolist() == [1, 1, 3, 3, 5, 5, 7, 7, 9, 9]
    seen = []

    def then(images, labels):
        seen.extend(labels.tolist())
        return images

    step.decode(step.rows.flip(0), then)  # other rows than the step's own
    assert seen == [9, 9, 7, 7, 5, 5, 3, 3, 1, 1]


ONCE = ["__bool__: return bool"]
"""Whether the step before was good; asked after all of a step is queued, before it updates anything."""


@pytest.fixture
def watched(monkeypatch, tmp_path, digits):
    """Reads of the host in the last of four training steps, checkpointed in chunks."""

    def run(prior, objective, **arguments):
        found = []
        plain = Distiller.training_step

        def training_step(model, batch, batch_idx):
            if batch_idx < 3:  # a checkpoint after the second has asked already
                return plain(model, batch, batch_idx)
            store = digits.core_set._store
            labels = model.codes.labels
            model.synthesis._labels = labels, labels.clone()  # on a CPU the two are one tensor
            answer = model.finite._answer._host  # of the step before, on its way to the host
            held = [*model.parameters(), *model.buffers(), store, answer]
            searches = [getattr(part, "_search", None) for part in model.objective.modules()]
            for search in filter(None, searches):  # the experts' network, kept from step to step
                held += search._found.network.parameters()
            with HostReads(held) as reads:
                plain(model, batch, batch_idx)
            # Lightning's own bookkeeping of a logged value is not followed.
            found.extend(note for note in reads.found if "self.log" not in note)

        monkeypatch.setattr(Distiller, "training_step", training_step)
        options = {"chunk_size": 4, "checkpointing": "always"} | arguments
        fit(prior, objective, tmp_path / "run", 4, digits, **options)
        return found

    return run


def test_the_watch_sees_what_waits(digits):
    weight = torch.ones(3)
    with HostReads([weight]) as reads:
        on_device = torch.zeros(3).to(torch.device("cpu"), non_blocking=True)
        assert not reads.found
        bool((weight * 2).sum() > 1)
        on_device.tolist()
        (on_device + 1)[weight > 0]
        weight.new_tensor([1.0])
        torch.ones(2).to(torch.device("cpu"))
        torch.arange(3).tolist()
    names = [note.split(":")[0] for note in reads.found]
    assert names == ["__bool__", "tolist", "__getitem__", "new_tensor", "blocking to"]


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_distribution_matching_asks_the_device_once(watched, tiny_prior_path, norm):
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)

    def network(num_classes, image_size):
        return NARROW(num_classes, image_size, norm=norm)

    once = watched(prior, matching(network=network, real_chunk=7))
    assert [note.partition("(")[0] for note in once] == ONCE


def test_gradient_matching_asks_the_device_once(watched, tiny_prior_path):
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)
    once = watched(prior, GradientMatching(real_batch=4, network=NARROW, lr_latents=0.1))
    assert [note.partition("(")[0] for note in once] == ONCE


@pytest.mark.parametrize("codes", [PointCodes, partial(GaussianCodes, rank=2)], ids=["points", "gaussians"])
@pytest.mark.parametrize("kind", ["dm", "dc", "mmd", "faithful decoder"])
def test_no_draw_of_codes_asks_the_device(watched, tiny_prior_path, codes, kind):
    """Chunks, several draws and means of channels wait for nothing: only whether the step before was finite."""
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)
    objective = {
        "dm": matching(),
        "dc": GradientMatching(real_batch=4, network=NARROW, lr_latents=0.1),
    }.get(kind, MaximumMeanDiscrepancy(network=NARROW, samples=4, discrepancy=RBFMixture(), lr_latents=0.1))
    options = {}
    if kind == "faithful decoder":
        prior = DeconvolutionPrior("small", 32, preset="faithful", width=8, latent_width=4)
        options = {"chunk_size": "auto"}
    if codes is PointCodes:
        options["images_per_class"] = 2  # a discrepancy needs two samples
    once = watched(prior, objective, codes=codes, **options)
    assert [note.partition("(")[0] for note in once] == ONCE


def test_d3_asks_the_device_once(watched, tiny_prior_path, digits, tmp_path):
    """Two terms with a step each, an expert's weights and a learned step size."""
    options = {"num_experts": 1, "epochs": 2, "batch_size": 64, "progress": False}
    experts = str(record_experts(digits, network=NARROW, out=str(tmp_path / "experts"), **options))
    common = {"trajectories": experts, "network": NARROW, "lr_latents": 0.01, "lr_conditioning": 0.01}
    inner = TrajectoryMatching(**common, expert_epochs=1, max_start_epoch=1, syn_steps=2, unroll="full")
    d3 = Alternating([inner, MaximumMeanDiscrepancy(**common, samples=4, discrepancy=RBFMixture())])
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)
    once = watched(prior, d3, codes=GaussianCodes)
    assert [note.partition("(")[0] for note in once] == ONCE


def test_the_next_step_is_prepared_before_the_host_waits(tiny_prior_path, digits, tmp_path, monkeypatch):
    """Network and real images of step t + 1, with its gradients, are queued before it is asked whether t was good."""
    events = []

    def noted(owner, name, event):
        plain = getattr(owner, name)

        def call(self, *arguments, **options):
            events.append(event)
            return plain(self, *arguments, **options)

        monkeypatch.setattr(owner, name, call)

    noted(DistillationStep, "network", "network")
    noted(DistillationStep, "real_parts", "real images")
    noted(Tensor, "backward", "backward")
    noted(_Later, "read", "wait")
    noted(SGD, "step", "update")
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)
    fit(prior, matching(), tmp_path / "run", 4, digits, chunk_size=10, checkpointing="never")
    queued = ["network", "real images", "backward"]
    two_steps = [*queued, "update", *queued, "wait", "update"]
    assert events == 2 * [*two_steps, "wait"]  # a checkpoint of every second step asks for it
