"""One training step of distribution matching against its floor and against the published two-pass scheme.

    python -m benchmarks.step [--json] [--prior embedded:digits] [--num-steps 10] [--device cpu]
        [--precision float32|bfloat16] [--prior-precision float32|bfloat16] [--channels-last] [--compile inductor]

Floor: the arithmetic that cannot be avoided, timed piece by piece in the same run: S guided U-Net forwards and
input-gradient backwards, one decode both ways, the matching network forward on the real batch and both ways on the
synthetic one. `step_over_generator_floor` leaves the matching network out.
Two passes: the scheme of the released LD3M code on the same prior, images and network: synthesis without gradient,
loss and gradient per class, then synthesis again in chunks of 10 with every U-Net call checkpointed.
`one_step_over_step`: a step through a prior of one step, which is called once and without guidance, over one through
`--num-steps` guided calls; both have the networks of `--prior`. `one_step_over_generator_floor`: the same of the
generators alone, one call and one decode over the generator's floor.
Precision, layout and compilation are those of our step and its floor; two passes are float32 and as written, always.
All times are medians over interleaved repetitions. `step_peak_mib` and `two_pass_peak_mib` are the most that tensors
hold at one time in such a step, `peak_memory_mib` is the whole process's (or the device's); `distribution_growth`
says how much more than its codes and images a step takes at the most images per class than at the fewest, at a fixed
chunk (`benchmarks.memory`).
"""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.figures import parser_of, show
from benchmarks.memory import measure as measure_memory
from ldd.data import DistillationData
from ldd.distiller.memory import peak_mib
from ldd.distiller.module import Distiller
from ldd.objectives import DistributionMatching, Objective, Term
from ldd.priors import LatentDiffusionPrior, Prior
from ldd.priors.base import in_own_type
from ldd.priors.reverse import guided
from ldd.priors.schedule import Time
from ldd.runtime.devices import peak_memory_mib
from ldd.runtime.precision import without_autocast


class Setting:
    """A distiller on digits (or on other data), ready to step: distribution matching, or another objective."""

    def __init__(
        self,
        prior: str | Prior,
        num_steps: int,
        real_batch: int,
        ipc: int,
        device: torch.device,
        *,
        data: DistillationData | None = None,
        objective: Objective | None = None,
        bfloat16: bool = False,
        guidance_scale: float | None = None,
        **options: Any,  # noqa: ANN401 - of the distiller
    ) -> None:
        self.data = DistillationData() if data is None else data
        self.data.setup()
        self.prior = (
            LatentDiffusionPrior(
                prior,
                num_steps=num_steps,
                image_size=self.data.spec.image_size,
                guidance_scale=guidance_scale,
            )
            if isinstance(prior, str)
            else prior
        )
        self.objective = DistributionMatching(real_batch=real_batch) if objective is None else objective
        self.real_batch = real_batch
        self.model = Distiller(
            self.prior, self.objective, self.data.spec, images_per_class=ipc, **options
        ).to(device)
        self.real = self.data.core_set.to(device)
        if self.prior.can_encode:
            self.model.initializer(
                self.model.codes, self.model.prior, self.data.core_set, torch.Generator().manual_seed(0)
            )
        self.model.configure_optimizers()
        self.context = self.model.context(self.real, 0)
        self.precision = partial(torch.autocast, device.type, torch.bfloat16, enabled=bfloat16)

    def step(self) -> None:
        """What `Distiller.training_step` does, without the trainer."""
        with self.precision():
            for term in self.objective.terms(self.model.context(self.real, 0)):
                self.zero_grad()
                with without_autocast():
                    term.value.backward()
                self.update(term)

    def zero_grad(self) -> None:
        for optimizer in self.model._optimizers.values():
            optimizer.zero_grad()

    def update(self, term: Term) -> None:
        for name in self.model._stepping(term):
            self.model._optimizers[name].step()


def floor_parts(setting: Setting) -> dict[str, Callable[[], None]]:
    """Each unavoidable piece of a step as a function to time."""
    model, prior, context = setting.model, setting.prior, setting.context
    codes = model.codes(context.rows)
    n = len(context.rows)
    latents = codes.latents.detach().requires_grad_()
    conditioning = codes.conditioning.detach().requires_grad_()
    network = context.network(setting.objective.networks[0])
    real = context.real_classes(setting.real_batch)
    with torch.no_grad():
        images = prior.decode(latents)

    def call(x: Tensor, timestep: Time, condition: Tensor) -> Tensor:
        return in_own_type(prior.unet, lambda x, c: prior.denoiser(x, timestep, c), x, condition)

    def unet(scale: float) -> None:
        predict = guided(call, conditioning, prior.null(n).to(conditioning), scale)
        timestep = prior.schedule.steps(2)[1].timestep
        torch.autograd.grad(predict(latents, timestep).sum(), [latents, conditioning])

    def decode() -> None:
        torch.autograd.grad(prior.decode(latents).sum(), latents)

    def match_real() -> None:
        with torch.no_grad():
            network.embed(real.images)

    def match_synthetic() -> None:
        leaf = images.clone().requires_grad_()
        torch.autograd.grad(network.embed(leaf).sum(), leaf)

    calls = {"unet": partial(unet, prior.guidance_scale), "unet_once": partial(unet, 1.0)}
    parts = {**calls, "decode": decode, "match_real": match_real, "match_synthetic": match_synthetic}

    def in_precision(part: Callable[[], None]) -> None:
        with setting.precision():
            part()

    return {name: partial(in_precision, part) for name, part in parts.items()}


def two_pass_step(setting: Setting, chunk: int = 10) -> None:
    """The published scheme on the same work."""
    model, prior, context = setting.model, setting.prior, setting.context
    rows = context.rows
    with torch.no_grad():
        images = torch.cat([model.synthesis(part) for part in rows.split(chunk)])
    images.requires_grad_()
    network = context.network(setting.objective.networks[0])
    loss = images.new_zeros(())
    for label in context.classes.tolist():
        draws = setting.objective.augmentation.draw(
            1, context.generator("augmentation", label), one_strategy=True
        )

        def embed(x: Tensor, draws: object = draws) -> Tensor:
            same = draws[torch.zeros(len(x), dtype=torch.long)]  # type: ignore[index]
            return network.embed(setting.objective.augmentation(context.normalise(x), same))

        real = embed(context.real(label, setting.real_batch)).detach().mean(0)
        loss = loss + (real - embed(images[context.labels == label]).mean(0)).square().sum()
    (upstream,) = torch.autograd.grad(loss, images)
    setting.zero_grad()
    forward = prior.unet.forward

    def checkpointed(*args: Tensor, **kwargs: Tensor) -> object:
        return checkpoint(lambda *a: forward(*a, **kwargs), *args, use_reentrant=False)

    prior.unet.forward = checkpointed
    try:
        for part, gradient in zip(rows.split(chunk), upstream.split(chunk), strict=True):
            model.synthesis(part).backward(gradient)
    finally:
        prior.unet.forward = forward
    setting.model._optimizers["codes"].step()


def measure(
    functions: dict[str, Callable[[], None]], repetitions: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each function, interleaved so that noise of the machine meets all alike.

    On one thread of a CPU these are seconds of the process, which other work on the machine hardly changes.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repetition in range(repetitions + 1):
        for name, function in functions.items():
            _wait(device)
            started = clock()
            function()
            _wait(device)
            if repetition:  # the first warms up
                times[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(
    work: tuple[str | Prior, int, int, int, torch.device],
    options: Mapping[str, Any],
    repetitions: int,
    **world: Any,  # noqa: ANN401 - data and objective
) -> dict[str, float]:
    """Figures of our step with its options, its floor and the two-pass scheme; `work` is as of `Setting`."""
    device = work[-1]
    setting = Setting(*work, **world, **options)
    changed = any(value not in (None, False, "float32") for value in options.values())
    plain = Setting(*work, **world) if changed else setting
    two_pass = partial(two_pass_step, plain)
    one = Setting(work[0], 1, *work[2:], **world, **options, guidance_scale=1.0)
    ways = {"step": setting.step, "one_step": one.step, "two_pass": two_pass, **floor_parts(setting)}
    seconds = measure(ways, repetitions, device)
    generator_floor = work[1] * seconds["unet"] + seconds["decode"]
    floor = generator_floor + seconds["match_real"] + seconds["match_synthetic"]
    return {
        "step_seconds": seconds["step"],
        "two_pass_seconds": seconds["two_pass"],
        "floor_seconds": floor,
        "step_over_floor": seconds["step"] / floor,
        "step_over_generator_floor": seconds["step"] / generator_floor,
        "one_step_over_step": seconds["one_step"] / seconds["step"],
        "one_step_over_generator_floor": (seconds["unet_once"] + seconds["decode"]) / generator_floor,
        "speedup_over_two_pass": seconds["two_pass"] / seconds["step"],
        "step_peak_mib": peak_mib(setting.step, device),
        "two_pass_peak_mib": peak_mib(two_pass, device),
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--prior", default="embedded:digits")
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--real-batch", type=int, default=32)
    parser.add_argument("--images-per-class", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--memory-at", default="1,10,50", help="images per class at which memory is measured; empty for not"
    )
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--prior-precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--channels-last", action="store_true", help="of our step only")
    parser.add_argument("--compile", default=None, help="backend of torch.compile, of our step only")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    figures = compare(
        (arguments.prior, arguments.num_steps, arguments.real_batch, arguments.images_per_class, device),
        {
            "bfloat16": arguments.precision == "bfloat16",
            "channels_last": arguments.channels_last,
            "compile": arguments.compile,
            "prior_precision": arguments.prior_precision,
        },
        arguments.repetitions,
    )
    figures |= {"peak_memory_mib": peak_memory_mib(device), "threads": torch.get_num_threads()}
    if arguments.memory_at:
        figures |= measure_memory(
            ["distribution"],
            [int(size) for size in arguments.memory_at.split(",")],
            prior=arguments.prior,
            chunk=10,
            real_batch=arguments.real_batch,
            device=device,
        )
    show(figures, arguments.json)


if __name__ == "__main__":
    main()
