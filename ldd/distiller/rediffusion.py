"""Re-diffusion: a finished set sent through a frozen diffusion model once more, without data and without training."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize

from ldd.artefact.identity import identify
from ldd.artefact.set import DistilledSet
from ldd.errors import UserError, check_at_least, check_not_negative
from ldd.images import saturate, to_bytes, to_unit_range
from ldd.priors import Guide, LatentDiffusionPrior, Moment, Prior, StateGuide
from ldd.priors.reverse import check_guidance
from ldd.priors.sampling import CHUNK, sample_class
from ldd.runtime import seeding


@dataclass(frozen=True)
class Rediffusion:
    """How a set is re-diffused (DIVER, ICML 2026, arXiv 2605.12649): noised, and denoised with a pull back to itself.

    Each image is encoded to z0, noised to `strength` of the schedule and denoised by DDIM; while a step k is at least
    `stop_step`, the state z that it ends in is moved by -pull b_k (z_k - z0), with z_k the state in which it began and
    b_k that state's share of noise. Published: 50 steps, the last 25 of them run, the first 15 of these pulled.

    Attributes:
        prior: folder, `embedded:digits` or hub id of the prior; None takes the run's.
        pull: gamma (published: 0.1; 0.02 for sets of NCFM).
        num_steps: DDIM steps of the whole schedule.
        strength: share of it that is run, in (0, 1].
        stop_step: the last pulled step; steps are counted down to 0.
        guidance_scale: of classifier-free guidance; None takes the prior's own.
        chunk_size: images at once.

    Raises:
        UserError: a number out of range, or a pull that no step would have.
    """

    prior: str | None = None
    pull: float = 0.1
    num_steps: int = 50
    strength: float = 0.5
    stop_step: int = 10
    guidance_scale: float | None = None
    chunk_size: int = CHUNK

    def __post_init__(self) -> None:
        check_at_least(1, "rediffusion", num_steps=self.num_steps, chunk_size=self.chunk_size)
        check_not_negative("rediffusion", pull=self.pull, stop_step=self.stop_step)
        if not 0 < self.strength <= 1:
            raise UserError(f"rediffusion.strength ({self.strength}) must be above 0 and at most 1")
        if self.pull and self.stop_step >= (taken := max(1, round(self.strength * self.num_steps))):
            raise UserError(
                f"rediffusion.stop_step ({self.stop_step}) must be below the {taken} steps that num_steps and strength "
                "run, or nothing is pulled; lower it, or set pull to 0"
            )
        if self.guidance_scale is not None:
            check_guidance(self.guidance_scale)

    def load_prior(self, of_run: Prior | None, device: torch.device) -> Prior:
        """Return the prior that is named, on the device, or the run's.

        Raises:
            UserError: none is named and there is no run's, it cannot be loaded, or it lacks diffusion model or encoder.
        """
        prior = of_run if self.prior is None else LatentDiffusionPrior(self.prior).to(device)
        if prior is None:
            raise UserError("rediffusion.prior: name the folder or hub id of a prior")
        if not (prior.can_sample and prior.can_encode):
            raise UserError(
                f"rediffusion.prior: {type(prior).__name__} has no diffusion model to send images through; name the "
                "folder or hub id of one"
            )
        return prior


class PullBack(StateGuide):
    """Pulls noisy states to clean latents z0 (n, c, h, w), see `Rediffusion`."""

    def __init__(self, clean: Tensor, pull: float, stop_step: int) -> None:
        self._clean = clean
        self._pull = pull
        self._stop_step = stop_step

    def move(self, at: Moment) -> Tensor:
        """Return -pull b (z_k - z0) down to the last pulled step."""
        if at.k < self._stop_step:
            return at.state.new_zeros(())
        return -self._pull * at.step.level.noise * (at.before - self._clean.to(at.before))


@torch.no_grad()
def rediffuse(distilled: DistilledSet, prior: Prior, settings: Rediffusion, seed: int = 0) -> DistilledSet:
    """Return a set of the same size whose images the prior has re-diffused, with a record of it in the manifest.

    Images are resized to the prior's size and back where the sizes differ (bilinear, antialiased). Codes, decoder and
    soft labels belong to the images as they were, and are left out; weights stay.

    Args:
        distilled: any finished set.
        prior: with an encoder and a diffusion model that knows the set's classes.
        settings: its `prior` is not read.
        seed: of the noise, which follows from it and the class.

    Raises:
        UserError: an unknown class, or a number of steps that the prior's schedule does not allow.
    """
    distilled.refuse_packed("re-diffusion")
    table = prior.rows(distilled.classes)
    device, size = next(prior.parameters()).device, distilled.image_size
    images = torch.empty_like(distilled.images)
    for info, row in zip(distilled.classes, table.split(1), strict=True):
        places = (distilled.labels == info.label).nonzero().flatten()
        found = _resized(distilled.images[places], prior.image_size).split(settings.chunk_size)
        clean = torch.cat([prior.encode(to_unit_range(part).to(device)) for part in found])
        latents = sample_class(
            prior,
            row,
            len(places),
            seeding.generator(seed, "rediffusion", info.wnid),
            num_steps=settings.num_steps,
            guidance_scale=settings.guidance_scale,
            chunk_size=settings.chunk_size,
            start=clean,
            strength=settings.strength,
            guide=_guide(clean, settings),
        )
        made = [to_bytes(saturate(prior.decode(part))).cpu() for part in latents.split(settings.chunk_size)]
        images[places] = _resized(torch.cat(made), size)
    record = {**asdict(settings), "prior": identify(prior), "seed": seed}
    manifest = distilled.manifest
    licences = dict(manifest.licences)
    licences["prior"] = "; ".join(dict.fromkeys((*licences["prior"].split("; "), prior.licence)))
    changes = {"licences": licences, "labels": None, "prior": None}
    return replace(
        distilled,
        images=images,
        soft_labels=None,
        label_top_k=None,
        codes=None,
        decoder=None,
        folder=None,
        manifest=manifest.replaced(**changes, rediffused=[*(manifest.rediffused or ()), record]),
    )


def _guide(clean: Tensor, settings: Rediffusion) -> Callable[[Tensor], Guide]:
    return lambda places: PullBack(clean[places.to(clean.device)], settings.pull, settings.stop_step)


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    changed: Tensor = resize(images, [size] * 2, InterpolationMode.BILINEAR, antialias=True)
    return changed
