"""Memory and arithmetic of the reverse process against its number of steps S, with and without activation checkpoints.

    python -m benchmarks.chain [--json] [--prior embedded:digits] [--num-steps 5,10,20,40] [--published]

For the prior, one code: `kept` is what the graph keeps for backward (MiB, weights left out), `peak` the most that
tensors hold at one time, backward included. S = 1 is without guidance, as priors of one step are used, all others with
it. `--published` counts one image of the U-Net that LD3M uses (400.9 M parameters, float32) with fake tensors, which
have no values and take no memory: `peak` at 128 px (S = 10) and 256 px (S = 20) with guidance; and at both sizes, for
S = 1, 4 and 10, `peak` without checkpoints and the arithmetic of a step of distribution matching in 10^12 operations (a
multiplication and an addition are two): `generator` is calls and decoding, both ways; `step` adds the matching network,
forward on 256 real images and both ways on the synthetic one.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.figures import parser_of, show
from benchmarks.worlds import SIDE, published_autoencoder, published_schedule, published_unet
from ldd.distiller.memory import kept_mib, peak_bytes
from ldd.networks import ConvNet
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


def of_published(side: int, num_steps: int, checkpointed: int, guidance: float = 3.0) -> float:
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
            predict = guided(call, conditioning, torch.zeros(1, 1, 512), guidance)
            made = modified_reverse(predict, latents, noise, schedule, num_steps, checkpointed=checkpointed)
            torch.autograd.grad(made.sum(), [latents, conditioning])

        return peak_bytes(step) / MIB


def arithmetic_of_published(image_size: int, real_batch: int = 256) -> dict[str, float]:
    """10^12 operations of the parts of a step with one image of this size: both ways, real images forward only."""
    side = image_size // SIDE
    with FakeTensorMode():
        network = published_unet().requires_grad_(False)
        decoder = published_autoencoder(image_size).decoder.requires_grad_(False)
        matching = ConvNet(10, image_size).requires_grad_(False)

        def call(n: int) -> None:
            x = torch.zeros(n, 3, side, side, requires_grad=True)
            condition = torch.zeros(n, 1, 512, requires_grad=True)
            output = network(x, torch.zeros((), dtype=torch.int64), encoder_hidden_states=condition).sample
            output.sum().backward()

        def decode() -> None:
            latents = torch.zeros(1, 3, side, side, requires_grad=True)
            decoder(latents).sum().backward()

        def match() -> None:
            images = torch.zeros(1, 3, image_size, image_size, requires_grad=True)
            matching.embed(images).sum().backward()
            with torch.no_grad():
                matching.embed(torch.zeros(real_batch, 3, image_size, image_size))

        def counted(part: Callable[[], None]) -> float:
            with FlopCounterMode(display=False) as counter:
                part()
            return counter.get_total_flops() / 1e12

        return {
            "once": counted(partial(call, 1)),
            "guided": counted(partial(call, 2)),
            "decode": counted(decode),
            "match": counted(match),
        }


def by_steps(image_size: int) -> dict[str, float]:
    """Figures of the published prior at this size for S = 1, 4 and 10."""
    parts, figures = arithmetic_of_published(image_size), dict[str, float]()
    for num_steps in (1, 4, 10):
        calls = parts["once"] if num_steps == 1 else num_steps * parts["guided"]
        guidance = 1.0 if num_steps == 1 else 3.0
        of = f"{image_size}px_{num_steps}"
        figures |= {
            f"published_peak_mib_{of}": of_published(image_size // SIDE, num_steps, 0, guidance),
            f"published_generator_{of}": calls + parts["decode"],
            f"published_step_{of}": calls + parts["decode"] + parts["match"],
        }
    return figures


def main() -> None:
    """Print the figures."""
    parser = parser_of(__doc__)
    parser.add_argument("--prior", default="embedded:digits")
    parser.add_argument("--num-steps", default="5,10,20,40")
    parser.add_argument("--published", action="store_true")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    for num_steps in map(int, arguments.num_steps.split(",")):
        guidance = 1.0 if num_steps == 1 else None
        prior = LatentDiffusionPrior(arguments.prior, num_steps=num_steps, guidance_scale=guidance)
        for name, count in (("without", 0), ("with", num_steps)):
            kept, peak = of_prior(prior, count)
            figures |= {f"kept_mib_{num_steps}_{name}": kept, f"peak_mib_{num_steps}_{name}": peak}
    if arguments.published:
        for side, num_steps in ((32, 10), (64, 20)):
            for name, count in (("without", 0), ("with", num_steps)):
                figures[f"published_peak_mib_{SIDE * side}px_{name}"] = of_published(side, num_steps, count)
            figures |= by_steps(SIDE * side)
    show(figures, arguments.json)


if __name__ == "__main__":
    main()
