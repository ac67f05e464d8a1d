"""Training a class-conditional latent diffusion prior on one's own images (`latentdd prior train`).

Two phases, told apart by the step alone: first the autoencoder, unless a pre-trained one is given, then the U-Net
on latents that are encoded once. Every batch follows from (seed, step), so a run resumes from its step.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast, final

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from ldd.classes import DataSpec, to_unit_range
from ldd.errors import NonFiniteError, UserError
from ldd.priors.architectures import AutoencoderShape, DenoiserShape
from ldd.priors.autoencoder import AutoencoderPrior
from ldd.priors.views import AffineViews
from ldd.priors.writing import count, write_prior
from ldd.seeding import generator, seeded

_CHUNK = 256  # images encoded at once
_WARM_UP = 100  # steps over which a learning rate rises
_MEASURED = ("seconds", "autoencoder_loss", "loss", "val_loss", "val_autoencoder_loss")
_VALIDATION_DRAWS = 8  # (noise, time) pairs per selection image


class Images(Protocol):
    """What is asked of `RealImages`: images (M, 3, H, W) uint8 and labels (M,)."""

    images: Tensor
    labels: Tensor


class Denoiser(nn.Module):
    """U-Net with its class table; rows 0..K-1 are the classes, row K is the null condition.

    Args:
        unet: conditioned on one token of its `cross_attention_dim`.
        num_classes: K.
    """

    def __init__(self, unet: UNet2DConditionModel, num_classes: int) -> None:
        super().__init__()
        self.unet = unet
        self.class_embedding = nn.Embedding(num_classes + 1, unet.config.cross_attention_dim)

    def forward(self, latents: Tensor, timesteps: Tensor, rows: Tensor) -> Tensor:
        """Predicted noise (N, c, h, w) of noisy latents (N, c, h, w) at timesteps (N,) under class rows (N,)."""
        tokens = self.class_embedding(rows)[:, None]
        noise: Tensor = self.unet(latents, timesteps, encoder_hidden_states=tokens).sample
        return noise


@final
class PriorTraining(LightningModule):
    """Autoencoder and class-conditional denoiser, trained one after the other.

    The denoiser learns to predict noise (DDPM, Ho et al. 2020) in the latent space (Rombach et al. 2022), with the
    class dropped at random for classifier-free guidance (Ho and Salimans 2022). What is saved are exponential moving
    averages of its weights. `trainer.max_steps` counts both phases.

    Args:
        autoencoder: shape of the autoencoder to train, or folder or hub id of a pre-trained one, which stays frozen.
        unet: shape of the denoiser.
        data_spec: classes and image size (linked to the data).
        autoencoder_steps: steps of the first phase; 0 with a pre-trained autoencoder.
        autoencoder_batch_size: images per step of the first phase.
        autoencoder_lr: peak learning rate of the first phase.
        kl_weight: weight of the posterior's divergence per latent value, beside the mean absolute error per pixel.
        batch_size: latents per step of the second phase.
        lr: peak learning rate of the second phase; both rise over 100 steps and fall to 0 as a cosine.
        weight_decay: of AdamW, in the second phase.
        class_dropout: share of latents trained under the null condition, in [0, 1).
        ema_decay: of the moving average, reached gradually as min(ema_decay, (1 + n) / (10 + n)).
        augmentation: altered views of the training images; null for none.
        views: latents encoded of each training image, the first of them unaltered.
        beta_start, beta_end: ends of the noise schedule (scaled-linear, 1,000 steps).
        licence: terms of the trained weights; null names the data's.
        seed: of initial weights and every draw.

    Raises:
        UserError: settings that contradict each other or the data.
    """

    strict_loading = False  # a frozen autoencoder stays out of checkpoints

    def __init__(
        self,
        autoencoder: AutoencoderShape | str,
        unet: DenoiserShape,
        data_spec: DataSpec,
        autoencoder_steps: int = 0,
        autoencoder_batch_size: int = 64,
        autoencoder_lr: float = 2e-3,
        kl_weight: float = 1e-4,
        batch_size: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        class_dropout: float = 0.1,
        ema_decay: float = 0.999,
        augmentation: AffineViews | None = None,
        views: int = 1,
        beta_start: float = 0.0015,
        beta_end: float = 0.0195,
        licence: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        _check(isinstance(autoencoder, str), autoencoder_steps, class_dropout, views, augmentation)
        self.spec = data_spec
        self.frozen: AutoencoderPrior | None = None
        if isinstance(autoencoder, str):
            self.frozen = AutoencoderPrior(autoencoder, data_spec.image_size)
            channels, side, _ = self.frozen.latent_shape
        else:
            with seeded(seed, "autoencoder weights"):
                self.autoencoder = autoencoder.build(data_spec.image_size)
            channels, side = autoencoder.latent_channels, autoencoder.latent_size(data_spec.image_size)
        with seeded(seed, "denoiser weights"):
            self.denoiser = Denoiser(unet.build(channels, side), data_spec.num_classes)
        self.average = AveragedModel(self.denoiser, avg_fn=_moving_average(ema_decay)).requires_grad_(False)
        self.scheduler = DDIMScheduler(
            num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=beta_start, beta_end=beta_end,
            prediction_type="epsilon", timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False,
            clip_sample=False,
        )  # fmt: skip
        self._autoencoder_steps, self._autoencoder_batch = autoencoder_steps, autoencoder_batch_size
        self._batch, self._weight_decay = batch_size, weight_decay
        self._rates = (autoencoder_lr, lr)
        self._kl_weight, self._class_dropout = kl_weight, class_dropout
        self._augmentation, self._views, self._seed = augmentation, views, seed
        self._licence = (
            licence if licence is not None else f"weights learned from data under: {data_spec.licence}"
        )
        self._latents: Tensor | None = None
        self._rows: Tensor
        # How long and how well: kept in checkpoints, told by the model card.
        self.measured: Tensor
        self.register_buffer("measured", torch.full((len(_MEASURED),), torch.nan, dtype=torch.float64))

    def configure_optimizers(self) -> list[Optimizer]:
        """AdamW for each phase."""
        denoiser = AdamW(self.denoiser.parameters(), lr=self._rates[1], weight_decay=self._weight_decay)
        if self.frozen is not None:
            return [denoiser]
        return [AdamW(self.autoencoder.parameters(), lr=self._rates[0], weight_decay=0.0), denoiser]

    def setup(self, stage: str) -> None:
        """Refuse trainer settings that this training cannot honour."""
        if self.trainer.world_size > 1:
            raise UserError(
                f"prior training runs on one device, not on {self.trainer.world_size}; use trainer.devices=1"
            )
        if self.trainer.max_steps <= self._autoencoder_steps:
            raise UserError(
                f"trainer.max_steps={self.trainer.max_steps} leaves no step for the denoiser after "
                f"autoencoder_steps={self._autoencoder_steps}; set it to the steps of both phases together"
            )

    # One step

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """One step of the phase that this step belongs to; the loader's batch is not read."""
        started = time.perf_counter()
        step, first = self.global_step, self._autoencoder_steps
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        # Networks that use dropout draw from the global generator.
        with seeded(self._seed, "dropout", step, device=self.device):
            if step < first:
                loss, optimizer, rate = self._autoencoder_loss(step), optimizers[0], self._rates[0]
                rate *= _schedule(step, first)
            else:
                loss, optimizer, rate = self._denoiser_loss(step), optimizers[-1], self._rates[1]
                rate *= _schedule(step - first, self.trainer.max_steps - first)
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"step {step}: the training loss of the prior is {loss.item()}; lower lr or autoencoder_lr"
            )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer.optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()
        if step >= first:
            self.average.update_parameters(self.denoiser)
        self._record("autoencoder_loss" if step < first else "loss", loss.detach())
        seconds = self.measured[_MEASURED.index("seconds")]
        seconds.copy_(seconds.nan_to_num() + time.perf_counter() - started)

    def _autoencoder_loss(self, step: int) -> Tensor:
        draws = generator(self._seed, "autoencoder", step)
        real = self._split("train_images")
        images = to_unit_range(
            real.images[torch.randint(len(real.images), (self._autoencoder_batch,), generator=draws)]
        )
        images = images.to(self.device)
        if self._augmentation is not None:
            images = self._augmentation(images, draws)
        posterior = self.autoencoder.encode(images).latent_dist
        latents = posterior.sample(generator=draws)
        reconstruction: Tensor = self.autoencoder.decode(latents).sample
        divergence: Tensor = posterior.kl().mean() / latents[0].numel()
        return l1_loss(reconstruction, images) + self._kl_weight * divergence

    def _denoiser_loss(self, step: int) -> Tensor:
        if self._latents is None:
            self._latents, self._rows = self._encode_training_images()
        draws = generator(self._seed, "denoiser", step)
        chosen = torch.randint(len(self._latents), (self._batch,), generator=draws)
        rows = self._rows[chosen].clone()
        rows[torch.rand(self._batch, generator=draws) < self._class_dropout] = self.spec.num_classes
        return self._noise_error(self.denoiser, self._latents[chosen.to(self.device)], rows, draws)

    def _noise_error(
        self, denoiser: nn.Module, latents: Tensor, rows: Tensor, draws: torch.Generator
    ) -> Tensor:
        noise = torch.randn(latents.shape, generator=draws).to(latents)
        timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (len(latents),), generator=draws)
        timesteps = timesteps.to(self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        predicted: Tensor = denoiser(noisy, timesteps, rows.to(self.device))
        return mse_loss(predicted, noise)

    # Latents

    @torch.no_grad()
    def _encode_training_images(self) -> tuple[Tensor, Tensor]:
        """Scaled latents of all views of the training images, and their class rows, view-major."""
        if self.frozen is None:
            # Nothing trains the autoencoder from here on. Its unit of measure is the spread of plain latents.
            self.autoencoder.eval().requires_grad_(False)
            self.autoencoder.register_to_config(scaling_factor=1.0)
            plain = self._encode("train_images", view=0)
            self.autoencoder.register_to_config(scaling_factor=float(1 / plain.std()))
        latents = torch.cat([self._encode("train_images", view) for view in range(self._views)])
        return latents, self._split("train_images").labels.repeat(self._views)

    def _encode(self, split: str, view: int) -> Tensor:
        parts = []
        for number, chunk in enumerate(self._split(split).images.split(_CHUNK)):
            images = to_unit_range(chunk).to(self.device)
            if view > 0 and self._augmentation is not None:
                images = self._augmentation(images, generator(self._seed, "view", view, number))
            if self.frozen is not None:
                parts.append(self.frozen.encode(images))
            else:
                mode = self.autoencoder.encode(images).latent_dist.mode()
                parts.append(mode.float() * self.autoencoder.config.scaling_factor)
        return torch.cat(parts)

    def _split(self, name: str) -> Images:
        return cast(Images, getattr(self.trainer.datamodule, name))  # type: ignore[attr-defined]

    # The end of a run

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Errors on the selection split: noise (averaged weights, fixed draws), and pixels of a trained autoencoder."""
        if self.trainer.sanity_checking or self._latents is None:
            return
        split, draws = self._split("selection_images"), generator(self._seed, "validation")
        latents = self._encode("selection_images", view=0)
        errors = [
            self._noise_error(self.average, latents, split.labels, draws) for _ in range(_VALIDATION_DRAWS)
        ]
        self._record("val_loss", torch.stack(errors).mean())
        if self.frozen is None:
            decoded = [self.autoencoder.decode(part / self.autoencoder.config.scaling_factor).sample
                       for part in latents.split(_CHUNK)]  # fmt: skip
            error = l1_loss(torch.cat(decoded), to_unit_range(split.images).to(self.device))
            self._record("val_autoencoder_loss", error)

    def _record(self, name: str, value: Tensor) -> None:
        kept = self.measured[_MEASURED.index(name)]
        validation = name.startswith("val_")
        kept.copy_(value if validation or kept.isnan() else kept.lerp(value.double(), 0.02))
        self.log(
            f"val/{name[4:]}" if validation else f"train/{name}", value, prog_bar=not validation, batch_size=1
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop a frozen autoencoder's weights."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            key: value for key, value in state.items() if not key.startswith("frozen.")
        }

    def save_prior(self, folder: Path | str, command: str | None = None) -> Path:
        """Write the prior folder with averaged weights in half precision, and a model card of the facts.

        Args:
            folder: where to; an existing one is replaced.
            command: what the user typed, for the model card.

        Raises:
            UserError: the denoiser has not been trained yet, or the folder cannot be written.
        """
        averaged = self.average.module
        assert isinstance(averaged, Denoiser)
        if int(self.average.n_averaged) == 0:
            raise UserError("there is no prior to save: the denoiser has not been trained for a single step")
        return write_prior(
            folder,
            unet=averaged.unet,
            autoencoder=self.autoencoder if self.frozen is None else self.frozen.autoencoder,
            scheduler=self.scheduler,
            class_embedding=averaged.class_embedding.weight,
            spec=self.spec,
            licence=self._licence,
            facts=self._facts(averaged, command),
        )

    def _facts(self, averaged: Denoiser, command: str | None) -> dict[str, str]:
        def number(name: str) -> str:
            value = float(self.measured[_MEASURED.index(name)])
            return "not measured" if value != value else f"{value:.4g}"

        facts = {"command": f"`{command}`"} if command is not None else {}
        facts |= {
            "seed": str(self._seed),
            "terms of the data": self.spec.licence,
            "data used": f"the training split only; the test split left out has fingerprint {self.spec.fingerprint}",
            "denoiser": f"{count(averaged)} parameters (class table included), {int(self.average.n_averaged):,} steps "
            f"of {self._batch}; noise error: training {number('loss')}, selection split {number('val_loss')}",
        }
        if self.frozen is None:
            facts["autoencoder"] = (
                f"{count(self.autoencoder)} parameters, {self._autoencoder_steps:,} steps of {self._autoencoder_batch};"
                f" loss: training {number('autoencoder_loss')}; mean absolute error of pixels in [-1, 1] on the "
                f"selection split {number('val_autoencoder_loss')}"
            )
        else:
            facts["autoencoder"] = (
                f"{count(self.frozen.autoencoder)} parameters, pre-trained; {self.frozen.licence}"
            )
        place = f"cpu (threads: {torch.get_num_threads()})" if self.device.type == "cpu" else self.device.type
        return facts | {"seconds": f"{float(self.measured[0]):.0f} of training on {place}"}


def _check(
    frozen: bool, autoencoder_steps: int, class_dropout: float, views: int, augmentation: AffineViews | None
) -> None:
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
    if views < 1 or (views > 1 and augmentation is None):
        raise UserError(
            f"views={views} needs an augmentation that makes them differ; set augmentation, or views=1"
        )


def _schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: rises over the warm-up (at most a fifth of the phase), then a half cosine."""
    warm_up = min(_WARM_UP, max(1, steps // 5))
    if step < warm_up:
        return (step + 1) / warm_up
    angle = torch.pi * (step - warm_up) / max(1, steps - warm_up)
    return float(0.5 * (1 + torch.cos(torch.tensor(angle))))


def _moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    def average(averaged: Tensor, current: Tensor, number: Tensor | int) -> Tensor:
        now = min(decay, (1 + float(number)) / (10 + float(number)))
        return averaged.lerp(current, 1 - now)

    return average
