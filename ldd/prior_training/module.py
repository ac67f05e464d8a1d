"""Training a class-conditional latent diffusion or flow prior on one's own images (`latentdd prior train`).

Phases, told apart by the step alone: first the autoencoder, unless a pre-trained one is given, then the U-Net on
latents that are encoded once; a prior of one step learns velocities first, and then averages of what it says of them.
Every batch follows from (seed, step), so that a run resumes from its step. Several ranks share each batch: rank r takes
every R-th of its images and gradients are summed, so that losses and weights agree with one rank's up to float32
rounding.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, final

import torch
from diffusers import ModelMixin
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import l1_loss
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from ldd.augmentation.affine import AffineViews
from ldd.disk.files import check_writable
from ldd.disk.parts import WhichPart
from ldd.errors import NonFiniteError, UserError
from ldd.images import DataSpec, to_unit_range
from ldd.prior_training.architectures import AutoencoderShape, ClassUNet, UNetShape
from ldd.prior_training.checks import check_settings, check_trainer
from ldd.prior_training.latents import CHUNK, LatentCache, LatentViews, encode_views, fingerprint
from ldd.prior_training.losses import learning_rate, moving_average, reconstruction_loss
from ldd.prior_training.targets import TIMESTEPS, Lessons, Network, Target
from ldd.prior_training.teacher import FrozenTeacher, knowledge
from ldd.prior_training.writing import Measured, count, half_precision, model_card
from ldd.priors.autoencoder import AutoencoderPrior
from ldd.priors.folder import LEFT_OUT, PriorCard, write_prior
from ldd.priors.schedule import Schedule
from ldd.runtime.devices import send
from ldd.runtime.processes import preparing
from ldd.runtime.ranks import sum_gradients, sum_over_ranks
from ldd.runtime.seeding import generator, seeded
from ldd.runtime.trainer import own_bar

if TYPE_CHECKING:
    from ldd.data.datamodule import DistillationData
    from ldd.data.real import RealImages

_VALIDATION_DRAWS = 8  # (noise, time) pairs per selection image


@final
class PriorTraining(LightningModule):
    """Autoencoder and class-conditional denoiser, trained one after the other.

    The denoiser learns to predict noise (DDPM, Ho et al. 2020) or velocities (flow matching, arXiv:2210.02747) in the
    latent space (Rombach et al. 2022), with the class dropped at random for classifier-free guidance (Ho and Salimans
    2022). For one step it goes on to averages of its own guided velocities (MeanFlow, arXiv:2505.13447). Exponential
    moving averages of its weights are saved. `trainer.max_steps` counts all phases.

    Args:
        autoencoder: shape of the autoencoder to train, or folder or hub id of a pre-trained one, which stays frozen.
        unet: shape of the denoiser.
        data_spec: classes and image size (linked to the data).
        autoencoder_steps: steps of the first phase; 0 with a pre-trained autoencoder.
        autoencoder_batch_size: images per step of the first phase.
        autoencoder_lr: peak learning rate of the first phase.
        kl_weight: weight of the posterior's divergence per latent value, relative to the mean absolute error per pixel.
        batch_size: latents per step of the second phase.
        lr: peak learning rate of the second phase; both rise over 100 steps and fall to 0 as a cosine.
        weight_decay: of AdamW, in the second phase.
        class_dropout: share of latents trained under the null condition, in [0, 1).
        ema_decay: of the moving average, reached gradually as min(ema_decay, (1 + n) / (10 + n)).
        augmentation: altered views of the training images; null for none.
        views: latents encoded of each training image, the first of them unaltered.
        mirror: encode the mirror image of each view too (not for digits or letters).
        cache_dir: folder for latents, shared by ranks and runs and mapped into memory; null keeps them in memory.
        beta_start, beta_end: ends of the noise schedule (scaled-linear, 1,000 steps), of `path: diffusion`.
        path: from data to noise: of `diffusion`, or straight, of a `flow`.
        steps: `many` steps draw a sample, or `one` (or few) of a flow.
        velocity_steps: of `steps: one`: training steps that learn velocities; the others learn their averages.
        guidance: of `steps: one`: scale of the classifier-free guidance that is learned in; 1: none.
        teacher: of `steps: one`: folder, name or hub id of a prior of many steps with this `autoencoder`, whose
            velocities are averaged; null takes those that the denoiser has learned itself.
        licence: terms of the trained weights; null names the data's.
        seed: of initial weights and every draw.

    Raises:
        UserError: settings that contradict each other or the data.
    """

    strict_loading = False  # a frozen autoencoder stays out of checkpoints
    _latents: Tensor | None = None
    _rows: Tensor
    _selection: Tensor | None = None
    _scale: float | None = None  # of the latents of an autoencoder of our own, once it is trained

    def __init__(
        self,
        autoencoder: AutoencoderShape | str,
        unet: UNetShape,
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
        mirror: bool = False,
        cache_dir: str | None = None,
        beta_start: float = 0.0015,
        beta_end: float = 0.0195,
        path: Literal["diffusion", "flow"] = "diffusion",
        steps: Literal["many", "one"] = "many",
        velocity_steps: int = 0,
        guidance: float = 2.0,
        teacher: str | None = None,
        licence: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        check_settings(
            path, steps, velocity_steps, autoencoder=autoencoder, autoencoder_steps=autoencoder_steps,
            class_dropout=class_dropout, teacher=teacher,
        )  # fmt: skip
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
            network = unet.build(channels, side, of_intervals=steps == "one")
            self.denoiser = ClassUNet(network, data_spec.num_classes)
        self._latent_shape = (channels, side, side)
        self.average = AveragedModel(self.denoiser, multi_avg_fn=moving_average(ema_decay))
        self.average.requires_grad_(False)
        shared, betas = (data_spec, self.frozen, guidance, TIMESTEPS), (beta_start, beta_end)
        self.teacher = None if teacher is None else FrozenTeacher(teacher, *shared)
        self.lessons = Lessons(path, velocity_steps, self.denoiser, self.teacher, guidance, betas)
        self._autoencoder_steps, self._autoencoder_batch = autoencoder_steps, autoencoder_batch_size
        self._batch, self._weight_decay = batch_size, weight_decay
        self._rates, self._kl_weight, self._class_dropout = (autoencoder_lr, lr), kl_weight, class_dropout
        self._views, self._seed = LatentViews(views, augmentation, mirror, seed), seed
        self._cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        own = f"weights learned from data under: {data_spec.licence}" if licence is None else licence
        self._licence = own if self.teacher is None else self.teacher.terms(own)
        self.measured = Measured()

    def configure_optimizers(self) -> list[Optimizer]:
        """Build AdamW for each phase."""
        denoiser = AdamW(self.denoiser.parameters(), lr=self._rates[1], weight_decay=self._weight_decay)
        if self.frozen is not None:
            return [denoiser]
        return [AdamW(self.autoencoder.parameters(), lr=self._rates[0], weight_decay=0.0), denoiser]

    def check_trainer(self, trainer: Trainer) -> None:
        """Raise for trainer settings that this training does not support, and for a cache that cannot be written."""
        if self._cache_dir is not None:
            check_writable(self._cache_dir, "model.cache_dir")
        before = {"autoencoder_steps": self._autoencoder_steps, "velocity_steps": self.lessons.velocity_steps}
        check_trainer(trainer, batches=(self._batch, self._autoencoder_batch), before=before)

    def configure_callbacks(self) -> list[Callback]:
        """Return a progress bar of whole runs in the place of the trainer's own; refuse settings."""
        self.check_trainer(self.trainer)  # before any image is decoded
        return own_bar(self.trainer)

    # One step

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """Train a step of the phase that is due; the loader's batch is not read."""
        started = time.perf_counter()
        step, first = self.global_step, self._autoencoder_steps
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        # Networks that use dropout draw from the global generator.
        with seeded(self._seed, "dropout", step, device=self.device):
            if step < first:
                loss, optimizer, rate = self._autoencoder_loss(step), optimizers[0], self._rates[0]
                rate *= learning_rate(step, first)
            else:
                loss, optimizer, rate = self._denoiser_loss(step), optimizers[-1], self._rates[1]
                rate *= self.lessons.learning_rate(step - first, self.trainer.max_steps - first)
        total = sum_over_ranks(loss.detach().clone())
        if not torch.isfinite(total):
            raise NonFiniteError(
                f"step {step}: the training loss of the prior is {total.item()}; lower lr or autoencoder_lr"
            )
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss.backward()  # not manual_backward: DDP would wait for the gradients of the other phase's network
        sum_gradients(parameter for group in optimizer.param_groups for parameter in group["params"])
        self.clip_gradients(optimizer.optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        optimizer.step()
        if step >= first:
            self.average.update_parameters(self.denoiser)
        self._record("autoencoder_loss" if step < first else "loss", total)
        self.measured.add_seconds(time.perf_counter() - started)

    def _autoencoder_loss(self, step: int) -> Tensor:
        """This rank's part of the loss: the sum over its images divided by the number of all."""
        draws = generator(self._seed, "autoencoder", step)
        real = self._data.core_set
        chosen = torch.randint(len(real.labels), (self._autoencoder_batch,), generator=draws)
        images = self._images(real, chosen)
        if self._views.augmentation is not None:
            images = self._views.augmentation(images, draws)
        noise = torch.randn(len(images), *self._latent_shape, generator=draws).to(self.device)
        mine, noise = self._share(images), self._share(noise)
        loss = reconstruction_loss(self.autoencoder, mine, noise, self._kl_weight)
        return loss * (len(mine) / len(images))

    def _denoiser_loss(self, step: int) -> Tensor:
        """This rank's part of the loss."""
        if self._latents is None:
            with preparing():
                self._latents = self._encode_training_images()
            self._rows = self._data.core_set.labels.repeat(len(self._views))
        done = step - self._autoencoder_steps
        self.lessons.begin(done, self.denoiser, self.average.module)
        target = self.lessons.target(done)
        draws = generator(self._seed, "denoiser", step)
        chosen = torch.randint(len(self._latents), (self._batch,), generator=draws)
        rows = self._rows[chosen].clone()
        rows[torch.rand(self._batch, generator=draws) < self._class_dropout] = self.spec.num_classes
        drawn = target.draw(self._batch, self._latent_shape, draws)
        mine = [self._share(t) for t in (self._latents[chosen], rows, *drawn)]
        return self._error(target, self.denoiser, mine) * (len(mine[0]) / self._batch)

    def _error(self, target: Target, network: Network, batch: Sequence[Tensor]) -> Tensor:
        latents, rows, noise, *times = (send(tensor, self.device) for tensor in batch)
        return target.error(network, latents, rows, noise, *times)

    def _images(self, real: "RealImages", places: Tensor) -> Tensor:
        return send(to_unit_range(real.take(places)), self.device)

    def _share(self, batch: Tensor) -> Tensor:
        return batch[self.trainer.global_rank :: self.trainer.world_size]

    # Latents

    def _encode_training_images(self) -> Tensor:
        """Scaled latents of all views of the training images, on the CPU, in the order of `encode_views`."""
        real, plain = self._data.core_set, None
        if self.frozen is None:
            # Nothing trains the autoencoder from here on. Its unit of measure is the spread of plain latents.
            self.autoencoder.eval().requires_grad_(False)
            self.autoencoder.register_to_config(scaling_factor=1.0)
            plain = self._cache(LatentViews())
            if self._scale is None:
                self._scale = float(1 / self._encoded(real, LatentViews(), plain).std())
            self.autoencoder.register_to_config(scaling_factor=self._scale)
        latents = self._encoded(real, self._views, self._cache(self._views))
        if plain is not None:
            plain.remove()
        return latents

    def encode_part(self, part: WhichPart) -> Path | None:
        """Encode a part of the training images (see `ldd.disk.parts`); return the file if all others are there."""
        cache = self._cache(self._views)
        assert cache is not None
        encode = partial(encode_views, self._encoder, self._data.core_set, self._views, self.device)
        return None if cache.load_part(encode, part) is None else cache.data

    def _encoded(self, real: "RealImages", views: LatentViews, cache: LatentCache | None) -> Tensor:
        encode = partial(encode_views, self._encoder, real, views, self.device)
        return torch.cat(list(encode())) if cache is None else cache.load(encode)

    def _cache(self, views: LatentViews) -> LatentCache | None:
        if self._cache_dir is None:
            return None
        shape = (len(self._data.core_set.labels) * len(views), *self._latent_shape)
        facts = self._data.core_set_key(), fingerprint(self._autoencoder), views, shape
        return LatentCache(self._cache_dir, *facts, self.spec.image_size)

    def _encoder(self, images: Tensor) -> Tensor:
        if self.frozen is not None:
            # The faster layout of large convolutional encoders, on CPUs too.
            return self.frozen.encode(images.contiguous(memory_format=torch.channels_last))
        mode: Tensor = self.autoencoder.encode(images).latent_dist.mode()
        scaled: Tensor = mode.float() * self.autoencoder.config.scaling_factor
        return scaled

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, H, W) of scaled latents (N, c, h, w), not clamped."""
        if self.frozen is not None:
            return self.frozen.decode(latents)
        images: Tensor = self.autoencoder.decode(latents / self.autoencoder.config.scaling_factor).sample
        return images

    @property
    def averaged(self) -> ClassUNet | None:
        """The averaged network; None before it has been trained for a step of what it is to predict."""
        trained = int(self.average.n_averaged) > self.lessons.velocity_steps
        return cast(ClassUNet, self.average.module) if trained else None

    @property
    def schedule(self) -> Schedule:
        """Under which samples of the averaged network are drawn."""
        return self.lessons.last.schedule

    @property
    def _autoencoder(self) -> ModelMixin:
        return self.autoencoder if self.frozen is None else self.frozen.autoencoder

    @property
    def _data(self) -> "DistillationData":
        return cast("DistillationData", self.trainer.datamodule)  # type: ignore[attr-defined]

    # The end of a run

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Measure errors on the selection split: of the averaged weights (fixed draws), of a trained autoencoder."""
        split, draws = self._data.selection_images, generator(self._seed, "validation")
        if self.trainer.sanity_checking or self._latents is None or not len(split.labels):
            return
        latents = self._selection = (
            self._encoded(split, LatentViews(), None) if self._selection is None else self._selection
        )
        error = torch.zeros((), device=self.device)
        target = self.lessons.target(int(self.average.n_averaged) - 1)
        for number in range(_VALIDATION_DRAWS):
            drawn = target.draw(len(latents), self._latent_shape, draws)
            if number % self.trainer.world_size == self.trainer.global_rank:
                parts = zip(*(t.split(CHUNK) for t in (latents, split.labels, *drawn)), strict=True)
                errors = [self._error(target, self.average, part) * len(part[0]) for part in parts]
                error += torch.stack(errors).sum() / (_VALIDATION_DRAWS * len(latents))
        self._record("val_loss", sum_over_ranks(error))
        if self.frozen is None:
            errors = [
                l1_loss(self.decode(latents[places].to(self.device)), self._images(split, places))
                * len(places)
                for places in torch.arange(len(latents)).split(CHUNK)
            ]
            self._record("val_autoencoder_loss", torch.stack(errors).sum() / len(latents))

    def _record(self, name: str, value: Tensor) -> None:
        self.measured.record(name, value)
        validation = name.startswith("val_")
        key = f"val/{name[4:]}" if validation else f"train/{name}"
        self.log(key, value, prog_bar=not validation, batch_size=1, rank_zero_only=True)  # alike on all

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Drop the weights of others (autoencoder, teacher), and add the scale of the latents."""
        state = checkpoint["state_dict"].items()
        checkpoint["state_dict"] = {k: v for k, v in state if not k.startswith(("frozen.", "teacher."))}
        checkpoint["latent_scale"] = self._scale

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over the scale of the latents, which would take all of them to measure again."""
        self._scale = checkpoint.get("latent_scale")
        if self.frozen is None and self._scale is not None:  # a run that has no step left encodes nothing
            self.autoencoder.register_to_config(scaling_factor=self._scale)

    def save_prior(self, folder: Path | str, command: str | None = None) -> Path:
        """Write the prior folder with averaged weights in half precision, in place of an existing one."""
        if self.averaged is None:
            raise UserError("there is no prior to save: the denoiser has not been trained for a single step")
        facts = {"licence of the weights": self._licence, **self._facts(self.averaged, command)}
        card = PriorCard(self.spec.classes, self.spec.num_classes, self.spec.image_size, self._licence)
        learned, data = knowledge(self.teacher, self._data)
        return write_prior(
            folder,
            network=half_precision(self.averaged.unet),
            autoencoder=half_precision(self._autoencoder),
            scheduler=self.lessons.last.scheduler,
            class_embedding=self.averaged.class_embedding.weight.half(),
            card=replace(card, guidance=self.lessons.guidance, data=data),
            readme=model_card(self.spec, facts),
            learned=learned,
        )

    def _facts(self, averaged: ClassUNet, command: str | None) -> dict[str, str]:
        number, target = self.measured.text, self.lessons.last
        facts = {"command": f"`{command}`"} if command is not None else {}
        facts |= {
            "seed": str(self._seed),
            "terms of the data": self.spec.licence,
            "data used": f"the training split only; {LEFT_OUT}{self.spec.fingerprint}",
            "denoiser": f"{count(averaged)} parameters (class table included), {int(self.average.n_averaged):,} steps "
            f"of {self._batch}; {target.error_name}: training {number('loss')}, selection split {number('val_loss')}",
            **self.lessons.facts(),
        }
        trained = self.measured.autoencoder(self._autoencoder_steps, self._autoencoder_batch)
        origin = trained if self.frozen is None else f"pre-trained; {self.frozen.licence}"
        facts["autoencoder"] = f"{count(self._autoencoder)} parameters, {origin}"
        taught = {} if self.teacher is None else self.teacher.facts(self.spec)
        return {**facts, **taught, "seconds": self.measured.duration(self.device)}
