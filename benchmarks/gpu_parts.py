"""The parts of `benchmarks.gpu`: each notes its figures one by one, and goes on past what fails."""

import argparse
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from PIL import Image

from benchmarks import evaluator as of_students, scoring as of_images
from benchmarks.step import Setting, compare, measure
from benchmarks.worlds import SMALL_AUTOENCODER, SMALL_UNET, noise_data, random_prior
from ldd.codes import GaussianCodes, PointCodes
from ldd.data import DistillationData, FolderSource, LossPruner
from ldd.disk.files import write_json
from ldd.distiller.memory import peak_mib
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
from ldd.prior_training.architectures import AutoencoderShape, UNetShape
from ldd.prior_training.module import PriorTraining
from ldd.priors import DeconvolutionPrior, LatentDiffusionPrior, Prior
from ldd.runtime.devices import find_device


class Notes:
    """Figures and failures of a part, written to a file at each one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.figures: dict[str, Any] = {}
        self.failed: dict[str, str] = {}

    def add(self, **figures: object) -> None:
        """Note figures."""
        self.figures |= figures
        write_json(self._path, {"figures": self.figures, "failed": self.failed})

    def attempt(self, name: str, measure: Callable[[], Mapping[str, object]]) -> None:
        """Note what `measure` returns, each figure as `<name>_<figure>`, or why it failed."""
        try:
            found = measure()
        except Exception as error:  # what fails must not hide what follows
            words = " ".join(str(error).split())[:500]
            self.failed[name] = f"{type(error).__name__}: {words}"
            found = {}
        self.add(**{f"{name}_{figure}": value for figure, value in found.items()})
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@dataclass(frozen=True)
class Sizes:
    """How much work the parts have: LD3M's at 128 px, or a little of everything."""

    device: torch.device
    tiny: bool
    shape: str = "published"
    image_size: int = 128
    classes: int = 10
    real_batch: int = 256
    repetitions: int = 3
    width: int = 128

    @classmethod
    def of(cls, device: str, *, tiny: bool) -> "Sizes":
        """Those of a run."""
        found = find_device(device)
        if tiny:
            return cls(found, True, "tiny", 32, 2, 4, 1, 8)
        return cls(found, False)

    @property
    def prior_precision(self) -> str:
        """Of the prior where precisions are not compared; CPUs without instructions for bfloat16 take long for it."""
        return "float32" if self.tiny else "bfloat16"

    def data(self) -> DistillationData:
        """Noise of as many images as a step takes."""
        return noise_data(self.classes, self.real_batch, self.image_size)

    def prior(self, data: DistillationData, folder: str) -> str:
        """A prior of the data's classes and size."""
        return random_prior(Path(folder) / "prior", self.shape, data.classes, data.spec.image_size)

    def matching(self) -> DistributionMatching:
        """Distribution matching with their real batch and network."""
        return DistributionMatching(real_batch=self.real_batch, network=partial(ConvNet, width=self.width))

    def of_each(self, ours: Any, tiny: Any) -> Any:  # noqa: ANN401 - of any kind
        """One of two values."""
        return tiny if self.tiny else ours


def step(notes: Notes, sizes: Sizes) -> None:
    """A step against its floor and the two-pass scheme, in each precision."""
    data = sizes.data()
    ways: dict[str, dict[str, Any]] = {
        "float32": {},
        "prior_bfloat16": {"prior_precision": "bfloat16"},
        "tf32": {},
        "bf16_mixed": {"prior_precision": "bfloat16", "bfloat16": True},
        "channels_last": {"prior_precision": "bfloat16", "channels_last": True},
    }
    with TemporaryDirectory() as folder:
        work = (sizes.prior(data, folder), sizes.of_each(10, 2), sizes.real_batch, 1, sizes.device)
        world = {"data": data, "objective": sizes.matching()}
        for name, options in ways.items():
            torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
            notes.attempt(name, partial(compare, work, options, sizes.repetitions, **world))


def compiled(notes: Notes, sizes: Sizes) -> None:
    """A compiled step: seconds of its first call, then the median."""
    data = sizes.data()
    torch.set_float32_matmul_precision("high")
    backend = sizes.of_each("inductor", "eager")
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "compiled": {"compile": backend},
        "reduce_overhead": {"compile": backend, "compile_mode": sizes.of_each("reduce-overhead", None)},
    }

    def timed(work: tuple[str, int, int, int, torch.device], **options: object) -> dict[str, float]:
        started = time.perf_counter()
        objective = sizes.matching()
        setting = Setting(
            *work, data=data, objective=objective, prior_precision=sizes.prior_precision, **options
        )
        setting.step()
        first = time.perf_counter() - started
        return {"first_seconds": first, **measure({"seconds": setting.step}, 5, sizes.device)}

    with TemporaryDirectory() as folder:
        work = (sizes.prior(data, folder), sizes.of_each(10, 2), sizes.real_batch, 1, sizes.device)
        for name, options in ways.items():
            notes.attempt(name, partial(timed, work, **options))


def memory(notes: Notes, sizes: Sizes) -> None:
    """Seconds and peak MiB of a step by images per class and by S; then at 256 px with S = 20."""
    data = sizes.data()

    def taken(prior: str, of: DistillationData, num_steps: int, ipc: int) -> dict[str, float]:
        work = (prior, num_steps, sizes.real_batch, ipc, sizes.device)
        setting = Setting(*work, data=of, objective=sizes.matching(), prior_precision=sizes.prior_precision)
        seconds = measure({"seconds": setting.step}, 1, sizes.device)
        return {**seconds, "peak_mib": peak_mib(setting.step, sizes.device)}

    with TemporaryDirectory() as folder:
        prior = sizes.prior(data, folder)
        for num_steps in sizes.of_each((5, 10, 20, 40), (2, 4)):
            notes.attempt(f"steps_{num_steps}", partial(taken, prior, data, num_steps, 1))
        for ipc in sizes.of_each((10, 50), (2, 4)):
            notes.attempt(f"ipc_{ipc}", partial(taken, prior, data, sizes.of_each(10, 2), ipc))
        large = noise_data(sizes.classes, sizes.of_each(64, 4), 2 * sizes.image_size)
        prior = random_prior(Path(folder) / "large", sizes.shape, large.classes, large.spec.image_size)
        notes.attempt("large_images", partial(taken, prior, large, sizes.of_each(20, 2), 1))


class Clock(L.Callback):
    """Seconds of a step after the first two, and of one more how often it makes the host wait (on CUDA)."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.seconds = 0.0
        self.waits: int | None = None
        self._device, self._last = device, steps - 2
        self._caught = warnings.catch_warnings(record=True)
        self._list: Any = None

    def on_train_batch_start(self, trainer: L.Trainer, model: L.LightningModule, batch: Any, i: int) -> None:  # noqa: ANN401
        if i == 2:
            self._synchronise()
            self._started = time.perf_counter()
        if i == self._last + 1 and self._device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
            self._list = self._caught.__enter__()
            warnings.simplefilter("always")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        model: L.LightningModule,
        outputs: Any,  # noqa: ANN401
        batch: Any,  # noqa: ANN401
        i: int,
    ) -> None:
        if i == self._last:
            self._synchronise()
            self.seconds = (time.perf_counter() - self._started) / (i - 1)
        if i == self._last + 1 and self._list is not None:
            torch.cuda.set_sync_debug_mode("default")
            self._caught.__exit__(None, None, None)
            self.waits = sum("synchroniz" in str(one.message) for one in self._list)

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def fit(
    model: L.LightningModule,
    data: DistillationData,
    device: torch.device,
    steps: int,
    precision: str = "32-true",
) -> Clock:
    """Train for so many steps by Lightning's trainer."""
    clock = Clock(device, steps)
    with TemporaryDirectory() as folder:
        L.Trainer(
            max_steps=steps, max_epochs=1, limit_val_batches=0, accelerator=device.type, devices=1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[clock],
            default_root_dir=folder, precision=precision,
        ).fit(model, data)  # fmt: skip
    return clock


def objectives(notes: Notes, sizes: Sizes) -> None:
    """A step of each objective, by the trainer."""
    data, network = sizes.data(), partial(ConvNet, width=sizes.width)
    torch.set_float32_matmul_precision("high")

    def taken(objective: Objective, prior: Prior, **options: object) -> dict[str, object]:
        clock = fit(
            Distiller(prior, objective, data.spec, **options), data, sizes.device, sizes.of_each(12, 5)
        )
        return {"seconds": clock.seconds, "host_waits": clock.waits}

    with TemporaryDirectory() as folder:
        path = sizes.prior(data, folder)
        experts = str(record_experts(data, network, num_experts=1, epochs=2, out=folder, progress=False))
        common: dict[str, Any] = {"trajectories": experts, "network": network}
        trajectory = partial(
            TrajectoryMatching, **common, expert_epochs=1, max_start_epoch=1, lr_step_size=0.0
        )
        rates = {"lr_latents": 1e-3, "lr_spread": 1e-3}
        discrepancy = MaximumMeanDiscrepancy(**common, **rates, samples=sizes.of_each(30, 4))
        built: dict[str, Callable[[], Objective]] = {
            "dm": sizes.matching,
            "dc": lambda: GradientMatching(real_batch=sizes.real_batch, network=network),
            "dc_trained": lambda: GradientMatching(
                real_batch=sizes.real_batch, network=network, outer_loop=3
            ),
            "mtt": trajectory,
        }
        for name, build in built.items():

            def chain(build: Callable[[], Objective] = build) -> dict[str, object]:
                prior = LatentDiffusionPrior(
                    path, num_steps=sizes.of_each(10, 2), image_size=sizes.image_size
                )
                return taken(build(), prior, codes=PointCodes, prior_precision=sizes.prior_precision)

            notes.attempt(name, chain)

        def d3() -> dict[str, object]:
            inner = trajectory(**rates, syn_steps=sizes.of_each(10, 2), unroll="full")
            prior = DeconvolutionPrior("small", sizes.image_size)
            return taken(
                Alternating([inner, discrepancy]),
                prior,
                codes=GaussianCodes,
                images_per_class=sizes.of_each(8, 2),
            )

        notes.attempt("d3", d3)


def evaluator(notes: Notes, sizes: Sizes) -> None:
    """Students of the protocol `quick` on ten digits."""
    epochs, networks = sizes.of_each((50, None), (2, ["ConvNet"]))
    lesson, training, test = of_students.lesson_on_digits("quick", epochs, networks)
    repeats = sizes.of_each(5, 2)
    run = partial(of_students.ours, lesson, training, test, repeats, sizes.device, num_workers=1)
    notes.attempt("side_by_side", partial(run, side_by_side=sizes.of_each(None, 2)))
    notes.attempt("one_by_one", partial(run, side_by_side=1))
    notes.attempt("published", partial(of_students.published, lesson, training, test, 1, sizes.device))


def scoring(notes: Notes, sizes: Sizes) -> None:
    """Losses of JPEG files of noise under a ResNet-50 with random weights."""
    count = sizes.of_each(1024, 8)
    draws = torch.Generator().manual_seed(0)
    with TemporaryDirectory() as folder:
        for wnid in ("n01440764", "n02102040"):
            for split, many in (("train", count // 2), ("val", 1)):
                place = Path(folder) / "images" / split / wnid
                place.mkdir(parents=True)
                for number in range(many):
                    pixels = torch.randint(256, (40, 50, 3), dtype=torch.uint8, generator=draws)
                    image = Image.fromarray(pixels.numpy()).resize((500, 400))
                    image.save(place / f"{wnid}_{number}.JPEG", quality=90)
        root = str(Path(folder) / "images")
        classifier = sizes.of_each("resnet50", "mobilenet_v2")
        options = argparse.Namespace(
            root=root, classifier=classifier, mean=[0.5] * 3, std=[0.5] * 3, turns=2, threads=1,
            batch_size="auto", precision="auto", device=str(sizes.device), json=False,
        )  # fmt: skip
        pruner = LossPruner(
            0.5, classifier=classifier, weights=of_images.weights_file(classifier, "random", folder),
            resize=(224, 224), crop=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), cache_dir=None,
        )  # fmt: skip
        source = FolderSource(root)
        items = source.items("train")
        notes.attempt(
            classifier, lambda: of_images.compare(options, source, items[: sizes.of_each(256, 4)], pruner)
        )
        notes.attempt("many", lambda: of_images.rate(options, source, items, pruner))


def prior_training(notes: Notes, sizes: Sizes) -> None:
    """Steps of `latentdd prior train`, half of them of each phase, in both precisions."""
    data = noise_data(sizes.classes, 32, sizes.of_each(64, 32))
    autoencoder = sizes.of_each(AutoencoderShape(channels=(64, 128, 256)), SMALL_AUTOENCODER)
    unet = sizes.of_each(
        UNetShape(channels=(128, 256, 384), attention=(False, True, True), conditioning_dim=256, heads=8),
        SMALL_UNET,
    )
    batch, steps = sizes.of_each((64, 44), (4, 6))

    def taken(precision: str) -> dict[str, object]:
        model = PriorTraining(
            autoencoder, unet, data.spec, autoencoder_steps=1, autoencoder_batch_size=batch, batch_size=batch
        )
        seconds = fit(model, data, sizes.device, steps, precision).seconds
        return {"seconds": seconds, "latents_per_second": batch / seconds}

    for name, precision in (("float32", "32-true"), ("bf16_mixed", "bf16-mixed")):
        notes.attempt(name, partial(taken, precision))


PARTS: dict[str, Callable[[Notes, Sizes], None]] = {
    "step": step,
    "compile": compiled,
    "memory": memory,
    "objectives": objectives,
    "evaluator": evaluator,
    "scoring": scoring,
    "prior_training": prior_training,
}
