"""How far half precision moves the gradients of the first training step of each objective, part by part.

    python -m benchmarks.precision [--json] [--objective dm,dc,mtt,d3] [--ways whole,weights,kept,images]
        [--prior embedded:digits] [--num-steps 10] [--smooth]

One step by Lightning's trainer with the same draws in each way, of ten codes and 32 real images a class. A figure is
the relative distance |a - b| / |b| of a gradient from that in float32, root mean square over kinds of codes (with D3's
trained neck, and over its two terms, both at the start); `..._images` is that of the decoded images. The ways:

- `whole`: the prior in bfloat16 (`model.prior_precision`); all networks under autocast (`trainer.precision
  bf16-mixed`); both.
- `weights`: float32 arithmetic on weights that are rounded to bfloat16, all or those of one part: what remains of a
  part however exactly one computes. Parts are the denoiser's and the decoder's first and last layer, embedding of the
  timestep, norms, linear layers and convolutions.
- `kept`: weights, inputs and outputs of all layers rounded, and what it helps to keep some in float32; `activations`
  keeps the weights, `products` the norms and all outputs.
- `images`: float32 throughout, with noise of a relative size on the decoded images, or these rounded once: how exact
  images would have to be.

`--smooth` puts SiLU in the place of the matching network's ReLU: how much is due to its kinks.
D3 is Gaussian codes over the autoencoder behind a neck that is trained with them, and has no denoiser.
"""

import tempfile
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from benchmarks.figures import parser_of, show
from ldd.codes import GaussianCodes, PointCodes
from ldd.data import DistillationData
from ldd.distiller.module import Distiller
from ldd.experts.recording import record_experts
from ldd.networks import ConvNet
from ldd.objectives import (
    Alternating,
    DistributionMatching,
    GradientMatching,
    MaximumMeanDiscrepancy,
    Objective,
    TrajectoryMatching,
)
from ldd.priors import LatentDiffusionPrior, NeckPrior, Prior
from ldd.priors.base import last_layer
from ldd.runtime.seeding import generator

NETWORK = partial(ConvNet, width=32)
KINDS = ("first", "last", "time", "norms", "linear", "convolutions")
PARTS = frozenset(f"{network} {kind}" for network in ("denoiser", "decoder") for kind in KINDS)
ENDS = {part for part in PARTS if part.endswith(("first", "last"))}
TIME, NORMS = ({part for part in PARTS if part.endswith(kind)} for kind in ("time", "norms"))
DECODER = {part for part in PARTS if part.startswith("decoder")}
NOISE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


class Way(NamedTuple):
    """What differs from float32: settings, parts whose numbers are rounded, or images."""

    prior: str = "float32"
    trainer: str = "32-true"
    weights: Collection[str] = ()
    inputs: Collection[str] = ()
    outputs: Collection[str] = ()
    noise: float = 0.0
    images: bool = False


def _but(*kept: Collection[str]) -> Way:
    rounded = PARTS.difference(*kept)
    return Way(weights=rounded, inputs=rounded, outputs=rounded)


WAYS: dict[str, dict[str, Way]] = {
    "whole": {
        "prior": Way("bfloat16"),
        "autocast": Way(trainer="bf16-mixed"),
        "both": Way("bfloat16", "bf16-mixed"),
    },
    "weights": {
        "weights": Way(weights=PARTS),
        **{f"weights of {part}": Way(weights=[part]) for part in sorted(PARTS - {"decoder time"})},
    },
    "kept": {
        "rounded": _but(),
        "rounded but last layers": _but({part for part in ENDS if part.endswith("last")}),
        "rounded but ends": _but(ENDS),
        "rounded but ends and time": _but(ENDS, TIME),
        "rounded but ends, time and norms": _but(ENDS, TIME, NORMS),
        "rounded but decoder": _but(DECODER),
        "rounded but decoder and last layers": _but(DECODER, ENDS),
        "activations": Way(inputs=PARTS, outputs=PARTS),
        "products": Way(weights=PARTS - NORMS, inputs=PARTS - NORMS),
        "products but ends": Way(weights=PARTS - NORMS - ENDS, inputs=PARTS - NORMS - ENDS),
    },
    "images": {**{f"noise {size:g}": Way(noise=size) for size in NOISE}, "images rounded": Way(images=True)},
}


def smooth_network(num_classes: int, image_size: int) -> ConvNet:
    """The matching network with SiLU."""
    network = NETWORK(num_classes, image_size)
    for place, layer in enumerate(network.features):
        if isinstance(layer, nn.ReLU):
            network.features[place] = nn.SiLU()
    return network


def objectives(experts: str, *, smooth: bool) -> dict[str, Callable[[], Objective]]:
    """Builders by name, with the folder of recorded experts."""
    network = smooth_network if smooth else NETWORK
    still = {
        "lr_latents": 1e-30,
        "lr_spread": 1e-30,
        "lr_decoder": 1e-30,
    }  # the second term sees the same images
    trajectory: dict[str, Any] = {
        "trajectories": experts, "network": network, "expert_epochs": 1, "max_start_epoch": 1, "syn_steps": 3
    }  # fmt: skip
    return {
        "dm": lambda: DistributionMatching(real_batch=32, network=network),
        "dc": lambda: GradientMatching(real_batch=32, network=network),
        "mtt": lambda: TrajectoryMatching(**trajectory),
        "d3": lambda: Alternating(
            [
                TrajectoryMatching(**trajectory, **still, unroll="full"),
                MaximumMeanDiscrepancy(trajectories=experts, network=network, samples=8, **still),
            ]
        ),
    }


class _Round(torch.autograd.Function):
    """Rounds a tensor to bfloat16, and its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ANN401 - torch's own signature
        return _rounded(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ANN401
        return _rounded(gradient)


def _rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


def layers(prior: Prior) -> Iterator[tuple[str, nn.Module]]:
    """Yield each layer of the frozen networks with its part."""
    networks = list(prior.networks())
    for network in networks:
        where = "decoder" if network is networks[-1] else "denoiser"
        wanted = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.GroupNorm, nn.LayerNorm)
        found = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, wanted)]
        for number, (name, layer) in enumerate(found):
            if not number:
                kind = "first"
            elif layer is last_layer(network):
                kind = "last"
            elif "time" in name:
                kind = "time"
            elif isinstance(layer, nn.GroupNorm | nn.LayerNorm):
                kind = "norms"
            else:
                kind = "linear" if isinstance(layer, nn.Linear) else "convolutions"
            yield f"{where} {kind}", layer


def prepare(prior: Prior, way: Way) -> list[Tensor]:
    """Let the prior compute as the way says; return the list that its images will be in."""
    images: list[Tensor] = []
    for part, layer in layers(prior):
        if part in way.weights:
            for value in layer.parameters(recurse=False):
                value.data = _rounded(value.data)
        if part in way.inputs:
            layer.register_forward_pre_hook(lambda layer, inputs: (_Round.apply(inputs[0]), *inputs[1:]))
        if part in way.outputs:
            layer.register_forward_hook(lambda layer, inputs, output: _Round.apply(output))

    def decoded(decoder: nn.Module, inputs: object, output: Tensor) -> Tensor:
        images.append(output.detach().float())
        if way.noise:
            drawn = torch.randn(output.shape, generator=generator(0, "noise", len(images)))
            output = output + way.noise * output.detach().square().mean().sqrt() * drawn
        if way.images:
            output = output + (_rounded(output.detach()) - output.detach())
        return output

    list(prior.networks())[-1].register_forward_hook(decoded)
    return images


def first_step(
    name: str, objective: Objective, prior: Prior, data: DistillationData, way: Way
) -> dict[str, Tensor]:
    """Gradients of the first training step, by kind of codes and term, and the images."""
    images = prepare(prior, way)
    codes = GaussianCodes if name == "d3" else PointCodes
    model = Distiller(
        prior, objective, data.spec, codes=codes, prior_precision=way.prior, seed=1, chunk_size=10,
        checkpointing="never",
    )  # fmt: skip
    names = {id(value): kind for kind, value in model.codes.named_parameters()}
    names |= {id(value): "neck" for value in prior.trained().values()}
    found: dict[str, list[Tensor]] = {}
    steps = 0

    def note(optimizer: Optimizer, *_: object) -> None:
        nonlocal steps
        steps += 1
        held = [value for group in optimizer.param_groups for value in group["params"]]
        for value in held:
            if id(value) in names and value.grad is not None and value.numel():
                found.setdefault(f"{names[id(value)]} {steps}", []).append(value.grad.flatten().clone())

    hook = register_optimizer_step_pre_hook(note)
    try:
        with tempfile.TemporaryDirectory() as folder:
            L.Trainer(
                max_steps=1, max_epochs=1, limit_val_batches=0, precision=way.trainer, accelerator="auto", devices=1,
                logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                default_root_dir=folder,
            ).fit(model, data)  # fmt: skip
    finally:
        hook.remove()
    return {"images": torch.cat(images)} | {kind: torch.cat(parts) for kind, parts in found.items()}


def distances(found: dict[str, Tensor], exact: dict[str, Tensor]) -> tuple[float, float]:
    """Relative distance of the gradients, root mean square over kinds, each by its own size; and of the images."""
    each = {kind: (found[kind] - value).norm() / value.norm() for kind, value in exact.items() if value.any()}
    images = float(each.pop("images"))
    return float(torch.stack(list(each.values())).square().mean().sqrt()), images


def measure(
    prior: str, num_steps: int, names: list[str], groups: list[str], *, smooth: bool
) -> dict[str, float]:
    """Figures of all objectives and ways, flat."""
    data = DistillationData()
    data.setup()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        experts = ""
        if {"mtt", "d3"} & set(names):
            record_experts(
                data,
                smooth_network if smooth else NETWORK,
                num_experts=1,
                epochs=1,
                out=folder,
                progress=False,
            )
            experts = folder

        def gradients(name: str, way: Way) -> dict[str, Tensor]:
            build = NeckPrior(prior) if name == "d3" else LatentDiffusionPrior(prior, num_steps=num_steps)
            return first_step(name, objectives(experts, smooth=smooth)[name](), build, data, way)

        for name in names:
            exact = gradients(name, Way())
            for group in groups:
                for label, way in WAYS[group].items():
                    if name == "d3" and label.startswith("weights of denoiser"):
                        continue
                    found, images = distances(gradients(name, way), exact)
                    figures |= {f"{name}: {label}": found, f"{name}: {label}, images": images}
                    print(f"{name}: {label:<40}{100 * found:7.2f} %{100 * images:9.4f} %", flush=True)
    return figures


def main() -> None:
    """Print the figures."""
    parser = parser_of(__doc__)
    parser.add_argument("--prior", default="embedded:digits")
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--objective", default="dm,dc,mtt,d3")
    parser.add_argument("--ways", default=",".join(WAYS), help="groups of ways, separated by commas")
    parser.add_argument("--smooth", action="store_true", help="a matching network without kinks")
    arguments = parser.parse_args()
    names, groups = arguments.objective.split(","), arguments.ways.split(",")
    found = measure(arguments.prior, arguments.num_steps, names, groups, smooth=arguments.smooth)
    show(found, arguments.json)


if __name__ == "__main__":
    main()
