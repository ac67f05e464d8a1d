"""Peak memory of a training step against the images per class, at a fixed chunk.

    python -m benchmarks.memory [--json] [--objective distribution,gradient,trajectory] [--images-per-class 1,10,50]

On a CPU: the most bytes that tensors hold at one time during the step (exact; libraries and allocator gaps are left
out), on CUDA: what the allocator reports. `beyond_codes` leaves out what grows by itself: codes, their gradients and
momentum, images and, where an objective needs them, the images' gradients. `growth` is its largest value over that at
the fewest images per class, less 1.
"""

import tempfile
from collections.abc import Callable

import torch

from benchmarks.figures import parser_of, show
from ldd.data import DistillationData
from ldd.distiller.memory import peak_mib
from ldd.distiller.module import Distiller
from ldd.experts.recording import record_experts
from ldd.objectives import DistributionMatching, GradientMatching, Objective, TrajectoryMatching
from ldd.priors import LatentDiffusionPrior

MIB = 2**20


def step_peak(
    objective: Objective, data: DistillationData, prior: str, ipc: int, chunk: int, device: torch.device
) -> tuple[float, float]:
    """(peak MiB of a step, MiB of codes and images in it)."""
    model = Distiller(
        LatentDiffusionPrior(prior), objective, data.spec, ipc, chunk_size=chunk, checkpointing="always"
    ).to(device)
    codes = model.codes
    model.initializer(codes, model.prior, data.core_set, torch.Generator().manual_seed(0))
    optimizers = objective.optimizers(codes, model.prior)

    def step() -> None:
        for term in objective.terms(model.context(data.core_set, 0)):
            for optimizer in optimizers.values():
                optimizer.zero_grad()
            term.value.backward()
            for name in term.optimizers:
                optimizers[name].step()

    learned = sum(value.nbytes for value in codes.parameters())
    image = 3 * data.spec.image_size**2 * 4
    own = 2 * learned + 2 * len(codes) * image  # gradients and momentum; images and their gradients
    if device.type == "cuda":
        step()
    # On CUDA the momentum is there before the second step.
    return peak_mib(step, device) + (learned / MIB if device.type == "cuda" else 0), own / MIB


def objectives(data: DistillationData, folder: str, real_batch: int) -> dict[str, Callable[[], Objective]]:
    """Builders by name; trajectory matching gets one expert of one epoch, recorded now."""

    def trajectory() -> Objective:
        recording = record_experts(data, num_experts=1, epochs=1, out=folder, progress=False)
        return TrajectoryMatching(str(recording), expert_epochs=1, max_start_epoch=1)

    return {
        "distribution": lambda: DistributionMatching(real_batch=real_batch),
        "gradient": lambda: GradientMatching(real_batch=real_batch),
        "trajectory": trajectory,
    }


def measure(
    names: list[str], sizes: list[int], *, prior: str, chunk: int, real_batch: int, device: torch.device
) -> dict[str, float]:
    """Figures of all objectives, flat."""
    data = DistillationData()
    data.setup()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            objective = objectives(data, folder, real_batch)[name]()
            beyond = []
            for ipc in sizes:
                peak, own = step_peak(objective, data, prior, ipc, chunk, device)
                beyond.append(peak - own)
                figures |= {f"{name}_peak_mib_ipc_{ipc}": peak, f"{name}_codes_and_images_mib_ipc_{ipc}": own}
            figures[f"{name}_growth"] = max(beyond) / beyond[0] - 1
    return figures


def main() -> None:
    """Print the figures."""
    parser = parser_of(__doc__)
    parser.add_argument("--prior", default="embedded:digits")
    parser.add_argument("--objective", default="distribution,gradient,trajectory")
    parser.add_argument("--images-per-class", default="1,10,50")
    parser.add_argument("--chunk", type=int, default=10)
    parser.add_argument("--real-batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    figures = measure(
        arguments.objective.split(","),
        [int(size) for size in arguments.images_per_class.split(",")],
        prior=arguments.prior,
        chunk=arguments.chunk,
        real_batch=arguments.real_batch,
        device=torch.device(arguments.device),
    )
    show(figures, arguments.json)


if __name__ == "__main__":
    main()
