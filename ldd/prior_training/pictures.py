"""Pictures of the samples that a prior in training draws."""

from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from ldd.artefact.picture import BAND, MAX_ROWS, draw_grid
from ldd.disk.files import atomic_file
from ldd.errors import UserError, check_at_least
from ldd.images import to_bytes
from ldd.prior_training.module import PriorTraining
from ldd.priors.reverse import check_guidance, ddim_sample, guided
from ldd.priors.sampling import PURPOSE
from ldd.runtime.seeding import generator


class SamplePictures(L.Callback):
    """Write `<run>/samples/step-<n>.png`: a column per class, drawn by the averaged weights from the same noise.

    The first 20 classes are drawn, and none before the denoiser has been trained for a step.

    Args:
        every_n_steps: training steps between pictures, and one at the end; 0 for none.
        per_class: images of each class, at most 10.
        num_steps: DDIM or Euler steps; null takes 25, or 1 where one step is what is trained.
        guidance_scale: of classifier-free guidance, 1: none; null takes 2, or 1 where guidance is learned in.
        seed: of the initial noise.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        per_class: int = 5,
        num_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = 0,
    ) -> None:
        check_at_least(0, "samples", every_n_steps=every_n_steps)
        if not 1 <= per_class <= MAX_ROWS:
            raise UserError(f"samples.per_class ({per_class}) must be 1 to {MAX_ROWS}")
        if guidance_scale is not None:
            check_guidance(guidance_scale)
        self.every_n_steps = every_n_steps
        self.per_class = per_class
        self.num_steps = num_steps
        self.guidance_scale = guidance_scale
        self.seed = seed
        self._drawn_step = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Raise, before any work, for a number of steps that the schedule does not allow."""
        training = _training(pl_module)
        one = training.lessons.guidance is not None
        if self.num_steps is None:
            self.num_steps = 1 if one else 25
        if self.guidance_scale is None:
            self.guidance_scale = 1.0 if one else 2.0
        training.schedule.steps(self.num_steps)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Draw every `every_n_steps`."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, _training(pl_module))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw with the last weights."""
        if self.every_n_steps:
            self._draw(trainer, _training(pl_module))

    def _draw(self, trainer: L.Trainer, training: PriorTraining) -> None:
        step = trainer.global_step
        assert self.num_steps is not None, "by `setup`"
        assert self.guidance_scale is not None, "by `setup`"
        if not trainer.is_global_zero or step == self._drawn_step or training.averaged is None:
            return
        classes = list(training.spec.classes[:BAND])
        images = [
            draw_class(
                training,
                info.label,
                self.per_class,
                generator(self.seed, PURPOSE, info.wnid),
                num_steps=self.num_steps,
                guidance_scale=self.guidance_scale,
            )
            for info in classes
        ]
        labels = torch.arange(len(classes)).repeat_interleave(self.per_class)
        with atomic_file(Path(trainer.default_root_dir) / "samples" / f"step-{step:06d}.png") as beside:
            draw_grid(torch.cat(images), labels, classes).save(beside, format="PNG")
        self._drawn_step = step


@torch.no_grad()
def draw_class(
    training: PriorTraining,
    label: int,
    n: int,
    draws: torch.Generator,
    *,
    num_steps: int,
    guidance_scale: float,
) -> Tensor:
    """Draw images (n, 3, H, W) uint8 of one class by the averaged weights, the noise being one float32 draw."""
    check_guidance(guidance_scale)
    network = training.averaged
    assert network is not None, "the denoiser has been trained for a step"
    config, table = network.unet.config, network.class_embedding.weight
    noise = torch.randn(n, config.in_channels, config.sample_size, config.sample_size, generator=draws)
    tokens = table[torch.full((n,), label, device=table.device)][:, None]
    predict = guided(network.predict, tokens, table[-1].expand_as(tokens), guidance_scale)
    latents = ddim_sample(predict, noise.to(table.device), training.schedule, num_steps)
    return to_bytes(training.decode(latents)).cpu()


def _training(pl_module: L.LightningModule) -> PriorTraining:
    assert isinstance(pl_module, PriorTraining)
    return pl_module
