"""A frozen prior of many steps, whose guided velocities a prior of one step learns to average."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from ldd.errors import UserError
from ldd.images import DataSpec
from ldd.prior_training.latents import fingerprint
from ldd.priors.autoencoder import AutoencoderPrior
from ldd.priors.folder import LEFT_OUT, read_learned, read_left_out
from ldd.priors.latent_diffusion import COMPONENTS, TEXT, LatentDiffusionPrior
from ldd.priors.loading import locate
from ldd.priors.schedule import Interval, Times

if TYPE_CHECKING:
    from ldd.data.datamodule import DistillationData


@final
class FrozenTeacher(nn.Module):
    """The guided velocities of a latent diffusion prior, of diffusion or flow matching.

    Args:
        path_or_hub_id: as of `LatentDiffusionPrior`.
        spec: the data, whose classes it knows.
        autoencoder: of the student; None where that is still to be trained.
        guidance: scale of the teacher's guidance.
        timesteps: T of the student, which is told t T.

    Raises:
        UserError: a prior of one or few steps, without a null condition or with another autoencoder, or one that does
            not know the classes.
    """

    conditions: Tensor

    def __init__(
        self,
        path_or_hub_id: str,
        spec: DataSpec,
        autoencoder: AutoencoderPrior | None,
        guidance: float,
        timesteps: int,
    ) -> None:
        super().__init__()
        self.prior = prior = LatentDiffusionPrior(path_or_hub_id, image_size=spec.image_size)
        self._folder = locate(path_or_hub_id, COMPONENTS, TEXT)
        self._guidance, self._timesteps = guidance, timesteps
        if prior.schedule.takes_few_steps:
            raise UserError(f"teacher={path_or_hub_id} was made for one or few steps; name a prior of many")
        if not prior.denoiser.has_null:
            raise UserError(f"teacher={path_or_hub_id} has no condition of no class, as its student has one")
        theirs = prior.autoencoder
        both = [
            fingerprint(one.autoencoder) for one in (theirs, autoencoder) if isinstance(one, AutoencoderPrior)
        ]
        if len(both) < 2 or both[0] != both[1]:
            raise UserError(
                f"autoencoder: it must be the teacher's, whose latents it knows; set it to {path_or_hub_id}, too"
            )
        conditions = torch.cat([prior.embed(prior.rows(spec.classes)), prior.null(1)])
        self.register_buffer("conditions", conditions.clone(), persistent=False)

    def forward(self, x: Tensor, times: Times, rows: Tensor) -> Tensor:
        """Return velocities (N, c, h, w) at x under class rows (N,), at the noisier ends of intervals (N,)."""
        assert isinstance(times, Interval)
        return self.prior.velocity(x, times.begin / self._timesteps, self.conditions[rows], self._guidance)

    def terms(self, own: str) -> str:
        """Return the licence of a student's weights, given that of its data."""
        return f"{own}; taught by a prior under: {self.prior.licence}"

    def learned(self) -> Tensor | None:
        """Return which images the teacher has learned, see `read_learned`."""
        return read_learned(self._folder)

    def facts(self, spec: DataSpec) -> Mapping[str, str]:
        """Return what a student's model card says of it."""
        known = read_left_out(self._folder) == spec.fingerprint
        used = f"the training split only, as by the teacher; {LEFT_OUT}{spec.fingerprint}"
        return {
            "data used": used if known else "the training split; the teacher's is not known",
            "teacher": f"{self.prior.licence}; its velocities under guidance {self._guidance:g} are what was averaged",
        }


def knowledge(
    teacher: FrozenTeacher | None, data: "DistillationData"
) -> tuple[Tensor | None, Mapping[str, str] | None]:
    """Return what a prior folder says of images it has learned: their hashes, and fingerprints of the data's splits.

    A student knows what its teacher has learned: None where that one does not say.
    """
    learned = data.contents_of("core_set")
    if teacher is None:
        return learned, dict(data.fingerprints)
    known = teacher.learned()
    return None if known is None else torch.cat([known.to(learned), learned]).unique(), None
