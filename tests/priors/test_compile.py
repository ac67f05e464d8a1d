"""Layout and compilation change nothing but rounding, and what is compiled is one graph each."""

import pytest
import torch
from small_runs import NARROW, matching

from ldd.distiller.module import Distiller
from ldd.errors import UserError
from ldd.objectives import GradientMatching
from ldd.priors import AutoencoderPrior, LatentDiffusionPrior, PixelPrior


def loss_and_gradient(path, digits, objective, **arguments):
    """Of one step in float64, so that only other arithmetic would show."""
    prior = LatentDiffusionPrior(str(path), num_steps=2)
    model = Distiller(prior, objective, digits.spec, **arguments).double()
    model.initializer(model.codes, prior, digits.core_set, torch.Generator().manual_seed(0))
    (term,) = objective.terms(model.context(digits.core_set, 0))
    term.value.backward()
    report = term.value if term.report is None else term.report
    return report.detach(), model.codes.latents.grad


@pytest.mark.parametrize(
    "arguments",
    [
        {"channels_last": True},
        {"compile": "aot_eager"},  # all of torch.compile but the code it would generate
        {"compile": "aot_eager", "channels_last": True, "chunk_size": 5, "checkpointing": "always"},
    ],
)
def test_dm_is_the_same(tiny_prior_path, digits, arguments):
    torch._dynamo.reset()
    loss, gradient = loss_and_gradient(tiny_prior_path, digits, matching())
    found_loss, found = loss_and_gradient(tiny_prior_path, digits, matching(), **arguments)
    assert (found_loss - loss).abs() < 1e-10 * loss.abs()
    assert (found - gradient).abs().max() < 1e-9 * gradient.abs().max()


def test_dc_is_the_same_compiled(tiny_prior_path, digits):
    """Its second derivatives are those of the matching network, which stays as it is."""
    torch._dynamo.reset()
    objective = GradientMatching(real_batch=4, network=NARROW)
    loss, gradient = loss_and_gradient(tiny_prior_path, digits, objective)
    found_loss, found = loss_and_gradient(tiny_prior_path, digits, objective, compile="aot_eager")
    assert (found_loss - loss).abs() < 1e-10 * loss.abs()
    assert (found - gradient).abs().max() < 1e-9 * gradient.abs().max()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_graph_breaks_and_no_more_graphs_than_networks(tiny_prior_path, digits, precision):
    """Two steps with a fresh matching network each: U-Net and decoder are compiled once."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=3)
    objective = matching()
    model = Distiller(
        prior, objective, digits.spec, compile="aot_eager", chunk_size=10, checkpointing="never",
        prior_precision=precision,
    )  # fmt: skip
    for step in range(2):
        (term,) = objective.terms(model.context(digits.core_set, step))
        term.value.backward()
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2
    torch._dynamo.reset()


def test_layout_reaches_prior_and_matching_network(tiny_prior_path, digits):
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)
    model = Distiller(prior, matching(), digits.spec, channels_last=True)
    network = model.context(digits.core_set, 0).network(NARROW)
    for module in (prior, network):
        weights = [p for p in module.parameters() if p.ndim == 4]
        assert weights
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_refusals(tmp_path, tiny_prior_path, digits):
    with pytest.raises(UserError, match=r"compile \(inductor\): PixelPrior has no network to compile"):
        Distiller(PixelPrior(32), matching(), digits.spec, compile="inductor")
    prior = AutoencoderPrior(str(tiny_prior_path))
    with pytest.raises(UserError, match=r"compile \(fast\) is not a backend; choose from .*inductor"):
        Distiller(prior, matching(), digits.spec, compile="fast")
    for backend, mode in (("aot_eager", "reduce-overhead"), ("inductor", "fastest")):
        with pytest.raises(
            UserError, match=rf"compile_mode \({mode}\) is for compile: inductor, .*max-autotune"
        ):
            Distiller(prior, matching(), digits.spec, compile=backend, compile_mode=mode)
    with pytest.raises(UserError, match=r"compile_mode \(default\) needs compile: inductor"):
        Distiller(prior, matching(), digits.spec, compile_mode="default")


def test_the_mode_reaches_the_compiler(tiny_prior_path, digits, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: seen.append(options))
    prior = LatentDiffusionPrior(str(tiny_prior_path), num_steps=2)
    Distiller(prior, matching(), digits.spec, compile="inductor", compile_mode="reduce-overhead")
    assert seen == [{"fullgraph": True, "backend": "inductor", "mode": "reduce-overhead"}] * 2
