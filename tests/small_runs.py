"""Small real runs: digits at 32 px, a narrow ConvNet, a prior with random weights or none."""

from functools import partial
from pathlib import Path

import lightning as L

from ldd.callbacks import Export, LastCheckpoints
from ldd.data import DistillationData
from ldd.distiller import Distiller
from ldd.networks import ConvNet
from ldd.objectives import DistributionMatching, Objective
from ldd.priors import Prior

NARROW = partial(ConvNet, width=8)


class StopAtThree(L.Callback):
    """A user's own callback, found by its dotted name."""

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= 3


def matching(**arguments) -> DistributionMatching:
    """DM small enough for a test."""
    return DistributionMatching(
        **{"lr_latents": 0.1, "lr_conditioning": 0.1, "real_batch": 4, "network": NARROW} | arguments
    )


def fit(
    prior: Prior,
    objective: Objective,
    run: Path,
    steps: int,
    data: DistillationData,
    ckpt_path: Path | None = None,
    callbacks: tuple[L.Callback, ...] = (),
    precision: str = "32-true",
    **arguments,
) -> Distiller:
    """Run `steps` training steps in folder `run` with checkpoints every two steps and the artefact exported."""
    model = Distiller(prior, objective, data.spec, **arguments)
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=1,
        default_root_dir=run,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        precision=precision,
        callbacks=[LastCheckpoints(every_n_steps=2), Export(), *callbacks],
    )
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return model
