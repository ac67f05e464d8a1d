"""How far half precision moves the first training step of each objective, part by part.

    python -m benchmarks.precision [--json] [--prior embedded:digits] [--num-steps 10] [--objective dm,dc,mtt,d3]

One step by Lightning's trainer with the same draws in each way: in float32; with the prior alone in bfloat16
(`model.prior_precision`), and of that only its first network (the denoiser), or only the rounding of the weights; with
all networks under autocast (`trainer.precision bf16-mixed`); with the prior in bfloat16 under autocast. The figure is
the relative distance of the codes' change from that in float32, |a - b| / |b|, for each kind of code; `all` is their
root mean square. `rounded_...` is float32 arithmetic on weights of which only those of one kind of layer are rounded
to bfloat16: what remains of that kind however exactly one computes. D3 is Gaussian codes over the autoencoder behind a
neck that is trained with them.
"""

import tempfile
from collections.abc import Callable
from functools import partial

import lightning as L
import torch
from torch import Tensor, nn

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

NETWORK = partial(ConvNet, width=32)
WAYS = {
    "float32": ("float32", "32-true"),
    "weights": ("float32", "32-true"),
    "denoiser": ("float32", "32-true"),
    "prior": ("bfloat16", "32-true"),
    "autocast": ("float32", "bf16-mixed"),
    "both": ("bfloat16", "bf16-mixed"),
}
"""Name -> precision of the prior, and of the trainer."""

ROUNDED = {
    "rounded_convolutions": (nn.Conv2d, nn.ConvTranspose2d),
    "rounded_linear": (nn.Linear,),
    "rounded_norms": (nn.GroupNorm, nn.LayerNorm),
}
"""Name -> layers of all networks whose weights alone are rounded."""

LAST = "rounded_decoder"
"""All weights of the last network, which decodes."""
WAYS |= dict.fromkeys((*ROUNDED, LAST), WAYS["float32"])


def objectives(experts: str) -> dict[str, Callable[[], Objective]]:
    """Builders by name, with the folder of recorded experts."""
    rates = {"lr_latents": 0.1, "lr_spread": 0.1, "lr_decoder": 3e-3}
    trajectory = {"trajectories": experts, "network": NETWORK, "expert_epochs": 1, "max_start_epoch": 1}
    return {
        "dm": lambda: DistributionMatching(real_batch=32, network=NETWORK),
        "dc": lambda: GradientMatching(real_batch=32, network=NETWORK),
        "mtt": lambda: TrajectoryMatching(**trajectory, syn_steps=3),
        "d3": lambda: Alternating(
            [
                TrajectoryMatching(**trajectory, **rates, syn_steps=3, unroll="full"),
                MaximumMeanDiscrepancy(trajectories=experts, network=NETWORK, samples=8, **rates),
            ]
        ),
    }


def first_step(
    name: str, objective: Objective, prior: Prior, data: DistillationData, way: str
) -> dict[str, Tensor]:
    """What the first training step changes in the codes, by kind."""
    half, precision = WAYS[way]
    networks = list(prior.networks())
    if way == "weights":
        for network in networks:
            network.to(torch.bfloat16).to(torch.float32)
    modules = [module for network in networks for module in network.modules()]
    if way == LAST:
        modules = list(networks[-1].modules())
    for module in modules if way in (*ROUNDED, LAST) else ():
        if isinstance(module, ROUNDED.get(way, nn.Module)):
            for value in module.parameters(recurse=False):
                value.data = value.data.to(torch.bfloat16).to(torch.float32)
    if way == "denoiser":
        networks[0].to(torch.bfloat16)
    codes = GaussianCodes if name == "d3" else PointCodes
    model = Distiller(prior, objective, data.spec, codes=codes, prior_precision=half, seed=1)
    start: dict[str, Tensor] = {}

    class Start(L.Callback):
        def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            start.update({kind: value.detach().clone() for kind, value in model.codes.named_parameters()})

    with tempfile.TemporaryDirectory() as folder:
        L.Trainer(
            max_steps=1, max_epochs=1, limit_val_batches=0, precision=precision, accelerator="auto", devices=1,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder, callbacks=[Start()],
        ).fit(model, data)  # fmt: skip
    ended = {kind: value.detach().cpu() for kind, value in model.codes.named_parameters()}
    return {kind: value - start[kind].cpu() for kind, value in ended.items() if value.numel()}


def distances(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Relative distance of each kind of code that moved, and of all of them together, each kind by its own size."""
    moved = {kind: change for kind, change in exact.items() if change.norm() > 0}
    each = {kind: float((found[kind] - change).norm() / change.norm()) for kind, change in moved.items()}
    return {**each, "all": float(torch.tensor(list(each.values())).square().mean().sqrt())}


def measure(prior: str, num_steps: int, names: list[str]) -> dict[str, float]:
    """Figures of all objectives and ways, flat."""
    data = DistillationData()
    data.setup()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        experts = ""
        if {"mtt", "d3"} & set(names):
            record_experts(data, NETWORK, num_experts=1, epochs=1, out=folder, progress=False)
            experts = folder
        for name in names:
            changes = {}
            for way in WAYS:
                build = NeckPrior(prior) if name == "d3" else LatentDiffusionPrior(prior, num_steps=num_steps)
                changes[way] = first_step(name, objectives(experts)[name](), build, data, way)
            for way in WAYS:
                if way != "float32":
                    for kind, value in distances(changes[way], changes["float32"]).items():
                        figures[f"{name}_{way}_{kind}"] = value
    return figures


def main() -> None:
    """Print the figures."""
    parser = parser_of(__doc__)
    parser.add_argument("--prior", default="embedded:digits")
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--objective", default="dm,dc,mtt,d3")
    arguments = parser.parse_args()
    figures = measure(arguments.prior, arguments.num_steps, arguments.objective.split(","))
    show(figures, arguments.json)


if __name__ == "__main__":
    main()
