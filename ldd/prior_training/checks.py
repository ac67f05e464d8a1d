"""Settings of `latentdd prior train` that contradict each other, or the trainer, refused before any work."""

from lightning import Trainer

from ldd.errors import UserError
from ldd.prior_training.architectures import AutoencoderShape
from ldd.runtime.classes import check_text

_PRECISIONS = ("32-true", "bf16-mixed")


def check_settings(
    path: str,
    steps: str,
    velocity_steps: int,
    *,
    autoencoder: AutoencoderShape | str,
    autoencoder_steps: int,
    class_dropout: float,
    teacher: str | None,
) -> None:
    """Raise for settings of `PriorTraining` that contradict each other."""
    frozen = isinstance(autoencoder, str)  # it is pre-trained
    if isinstance(autoencoder, str):
        check_text("model.autoencoder", autoencoder, AutoencoderShape)
    if frozen and autoencoder_steps != 0:
        raise UserError(
            f"autoencoder_steps={autoencoder_steps} with a pre-trained autoencoder, which stays frozen; use 0"
        )
    if not frozen and autoencoder_steps < 1:
        raise UserError(
            f"autoencoder_steps={autoencoder_steps} leaves the autoencoder untrained; use some hundreds"
        )
    if not 0 <= class_dropout < 1:
        raise UserError(
            f"class_dropout={class_dropout} is not a share; use a number from 0 to below 1, such as 0.1"
        )
    if teacher is not None and not (frozen and steps == "one"):
        raise UserError(
            f"teacher={teacher} teaches steps=one in the latents of its own autoencoder; set steps to one, autoencoder "
            "to the teacher"
        )
    if steps == "many":
        if velocity_steps:
            raise UserError(f"velocity_steps={velocity_steps} belongs to steps=one; with steps=many use 0")
    elif path != "flow":
        raise UserError(f"steps=one goes along a straight path, not path={path}; set path to flow")
    elif velocity_steps < (1 if teacher is None else 0):
        raise UserError(
            f"velocity_steps={velocity_steps} leaves steps=one no velocities to average; use half of the steps, or "
            "name a prior of many steps as the teacher"
        )


def check_trainer(trainer: Trainer, *, batches: tuple[int, int], before: dict[str, int]) -> None:
    """Raise for settings of the trainer that this training does not support.

    Args:
        trainer: what trains.
        batches: latents and images of a step.
        before: name of a setting -> steps that go before the steps of the denoiser that is saved.
    """
    if trainer.precision not in _PRECISIONS:
        # float16 needs a loss scaler; averages of half-precision weights would not move.
        raise UserError(
            f"trainer.precision={trainer.precision} cannot train a prior; use {' or '.join(_PRECISIONS)}"
        )
    if trainer.world_size > min(batches):
        raise UserError(
            f"trainer.devices: {trainer.world_size} ranks cannot share batches of {batches[0]} latents and "
            f"{batches[1]} images; raise batch_size and autoencoder_batch_size, or use fewer devices"
        )
    if trainer.max_steps <= sum(before.values()):
        after = " and ".join(f"{name}={steps}" for name, steps in before.items() if steps)
        raise UserError(
            f"trainer.max_steps={trainer.max_steps} leaves no step for the denoiser after {after or 'none'}; set it to "
            "the steps of all phases together"
        )
