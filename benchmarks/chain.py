"""Memory of the reverse process against its number of steps S, with and without activation checkpoints over its calls.

    python -m benchmarks.chain [--json] [--prior embedded:digits] [--num-steps 5,10,20,40] [--published]

For the prior, one code: `kept` is what the graph keeps for backward (MiB, weights left out), `peak` the most that
tensors hold at one time, backward included. `--published` counts one image of the U-Net that LD3M uses (400.9 M
parameters, float32, guidance) with fake tensors, which have no values and take no memory: `peak` at 128 px (S = 10) and
256 px (S = 20).
"""

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from benchmarks.figures import parser_of, show
from benchmarks.worlds import published_schedule, published_unet
from ldd.distiller.memory import kept_mib, peak_bytes
from ldd.priors import DiffusionSchedule, LatentDiffusionPrior, modified_reverse
from ldd.priors.denoisers.base import timestep_tensor
from ldd.priors.reverse import guided
from ldd.runtime.seeding import generator

MIB = 2**20


def of_prior(prior: LatentDiffusionPrior, checkpointed: int) -> tuple[float, float]:
    """Kept and peak MiB of one code."""
    latents, noise = torch.randn(2, 1, *prior.latent_shape, generator=generator(0)).requires_grad_().unbind()
    conditioning = prior.null(1).clone().requires_grad_()

    def denoise() -> Tensor:
        return prior.denoise_checkpointed(latents, conditioning, noise, checkpointed)

    kept = kept_mib(denoise, prior.parameters())
    return kept, peak_bytes(lambda: torch.autograd.grad(denoise().sum(), conditioning)) / MIB


def of_published(side: int, num_steps: int, checkpointed: int) -> float:
    """Peak MiB of one image whose latents have this side."""
    schedule = DiffusionSchedule(published_schedule())
    grid = schedule.steps(num_steps)  # which reads a table, as fake tensors cannot
    schedule.steps = lambda num_steps, start=1.0: grid  # type: ignore[method-assign]
    with FakeTensorMode():
        network = published_unet().requires_grad_(False)
        latents, noise = (torch.zeros(1, 3, side, side, requires_grad=True) for _ in range(2))
        conditioning = torch.zeros(1, 1, 512, requires_grad=True)

        def call(x: Tensor, timestep: float, condition: Tensor) -> Tensor:
            output: Tensor = network(x, timestep_tensor(timestep, x), encoder_hidden_states=condition).sample
            return output

        def step() -> None:
            predict = guided(call, conditioning, torch.zeros(1, 1, 512), 3.0)
            made = modified_reverse(predict, latents, noise, schedule, num_steps, checkpointed=checkpointed)
            torch.autograd.grad(made.sum(), [latents, conditioning])

        return peak_bytes(step) / MIB


def main() -> None:
    """Print the figures."""
    parser = parser_of(__doc__)
    parser.add_argument("--prior", default="embedded:digits")
    parser.add_argument("--num-steps", default="5,10,20,40")
    parser.add_argument("--published", action="store_true")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    for num_steps in map(int, arguments.num_steps.split(",")):
        prior = LatentDiffusionPrior(arguments.prior, num_steps=num_steps)
        for name, count in (("without", 0), ("with", num_steps)):
            kept, peak = of_prior(prior, count)
            figures |= {f"kept_mib_{num_steps}_{name}": kept, f"peak_mib_{num_steps}_{name}": peak}
    if arguments.published:
        for side, num_steps in ((32, 10), (64, 20)):
            for name, count in (("without", 0), ("with", num_steps)):
                figures[f"published_peak_mib_{4 * side}px_{name}"] = of_published(side, num_steps, count)
    show(figures, arguments.json)


if __name__ == "__main__":
    main()
