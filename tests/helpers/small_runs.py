"""Small real runs: digits at 32 px, a narrow ConvNet, a prior with random weights or none."""

from functools import partial
from pathlib import Path

import lightning as L

import ldd
from ldd.callbacks import Export, LastCheckpoints
from ldd.data import DistillationData
from ldd.distiller.module import Distiller
from ldd.networks import ConvNet
from ldd.objectives import DistributionMatching, Objective
from ldd.priors import Prior

ROOT = Path(ldd.__file__).parent.parent
NARROW = partial(ConvNet, width=8)


def small_arguments(prior: Path) -> list[object]:
    """LD3M on the digits with a tiny prior and network, without evaluation, for the command line in folder `ROOT`."""
    return [
        *("--config", "configs/ld3m_digits.yaml", "--model.prior.path_or_hub_id", prior),
        *(
            "--model.prior.num_steps",
            2,
            "--model.objective.real_batch",
            4,
            "--model.objective.network.width",
            8,
        ),
        *("--trainer.limit_val_batches", 0, "--checkpoint.every_n_steps", 2),
    ]


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
    ranks: int = 1,
    **arguments,
) -> Distiller:
    """Run `steps` training steps in folder `run` with checkpoints every two steps and the artefact exported.

    With several `ranks` each of their processes calls this.
    """
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
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        use_distributed_sampler=False,
        callbacks=[LastCheckpoints(every_n_steps=2), Export(), *callbacks],
    )
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return model
