"""Pictures and a loss curve, drawn during a run."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ldd.artefact.picture import draw_curve, draw_grid
from ldd.disk.files import atomic_file
from ldd.distiller.module import Distiller
from ldd.errors import check_at_least


class Preview(L.Callback):
    """Writes `<run>/previews/step-<n>.png` and `<run>/previews/loss.png`, and hands pictures to the loggers.

    Args:
        every_n_steps: training steps between pictures; 0 for none.

    Raises:
        UserError: a negative number.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        check_at_least(0, "preview", every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self._losses: list[float] = []
        self._drawn = (-1, 0)  # step and losses of the latest picture
        self._not_read: list[Tensor] = []  # of the latest steps, 0-d: no step waits for its own loss

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the codes as they start."""
        if trainer.global_step == 0:
            self._draw(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Remember the loss; draw when it is time."""
        self._not_read.append(trainer.callback_metrics["train/loss"].detach().clone())
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the codes that are about to be evaluated, which takes long."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw the codes as they end."""
        self._draw(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the curve so far, so that a resumed run draws all of it."""
        return {"losses": self._curve()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the curve of the run so far."""
        self._losses = list(state_dict["losses"])

    def _curve(self) -> list[float]:
        if self._not_read:
            self._losses += torch.stack(self._not_read).tolist()
            self._not_read = []
        return self._losses

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        drawn = trainer.global_step, len(self._curve())
        if not self.every_n_steps or not trainer.is_global_zero or drawn == self._drawn:
            return
        self._drawn = drawn
        assert isinstance(pl_module, Distiller)
        distilled = pl_module.distilled_set()
        picture = draw_grid(distilled.images, distilled.labels, distilled.classes)
        folder = Path(trainer.default_root_dir) / "previews"
        with atomic_file(folder / f"step-{trainer.global_step:06d}.png") as beside:
            picture.save(beside, format="PNG")
        if self._curve():
            with atomic_file(folder / "loss.png") as beside:
                draw_curve(self._curve()).save(beside, format="PNG")
        for logger in trainer.loggers:
            log_image = getattr(logger, "log_image", None)  # W&B and MLflow have it, the others do not
            if log_image is not None:
                log_image(key="preview", images=[picture], step=trainer.global_step)
