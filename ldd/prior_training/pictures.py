"""Pictures of what a prior in training draws."""

from pathlib import Path

import lightning as L
import torch

from ldd.artefact.picture import BAND, MAX_ROWS, draw_grid
from ldd.disk.files import atomic_file
from ldd.errors import UserError
from ldd.prior_training.module import PriorTraining
from ldd.priors.reverse import check_guidance
from ldd.priors.schedule import Schedule
from ldd.runtime.seeding import generator


class PriorSamples(L.Callback):
    """Writes `<run>/samples/step-<n>.png`: a column per class, drawn by the averaged weights from the same noise.

    Of more than 20 classes the first 20 are drawn. Nothing is drawn before the denoiser has been trained for a step.

    Args:
        every_n_steps: training steps between pictures, and one at the end; 0 for none.
        per_class: images of each class, at most 10.
        num_steps: DDIM steps.
        guidance_scale: of classifier-free guidance; 1: none.
        seed: of the initial noise.

    Raises:
        UserError: a number out of range.
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        per_class: int = 5,
        num_steps: int = 25,
        guidance_scale: float = 2.0,
        seed: int = 0,
    ) -> None:
        if every_n_steps < 0:
            raise UserError(f"samples.every_n_steps ({every_n_steps}) must be 0 or more")
        if not 1 <= per_class <= MAX_ROWS:
            raise UserError(f"samples.per_class ({per_class}) must be 1 to {MAX_ROWS}")
        check_guidance(guidance_scale)
        self.every_n_steps = every_n_steps
        self.per_class = per_class
        self.num_steps = num_steps
        self.guidance_scale = guidance_scale
        self.seed = seed
        self._drawn_step = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse, before any work, a number of steps that the schedule does not allow."""
        Schedule(_training(pl_module).scheduler).steps(self.num_steps)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Draw when it is time."""
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, _training(pl_module))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last weights."""
        if self.every_n_steps:
            self._draw(trainer, _training(pl_module))

    def _draw(self, trainer: L.Trainer, training: PriorTraining) -> None:
        if not trainer.is_global_zero or trainer.global_step == self._drawn_step:
            return
        classes = list(training.spec.classes[:BAND])
        images = [
            training.draw(
                info.label,
                self.per_class,
                generator(self.seed, "prior sample", info.wnid),
                num_steps=self.num_steps,
                guidance_scale=self.guidance_scale,
            )
            for info in classes
        ]
        drawn = [part for part in images if part is not None]
        if not drawn:
            return
        labels = torch.arange(len(classes)).repeat_interleave(self.per_class)
        picture = draw_grid(torch.cat(drawn), labels, classes)
        path = Path(trainer.default_root_dir) / "samples" / f"step-{trainer.global_step:06d}.png"
        with atomic_file(path) as beside:
            picture.save(beside, format="PNG")
        self._drawn_step = trainer.global_step


def _training(pl_module: L.LightningModule) -> PriorTraining:
    assert isinstance(pl_module, PriorTraining)
    return pl_module
