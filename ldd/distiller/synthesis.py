"""Draws of codes that have a spread: from a run's own model, or from what an artefact holds."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldd import priors
from ldd.artefact import manifest as manifests
from ldd.artefact.set import DistilledSet
from ldd.codes import Codes, stored_codes
from ldd.errors import UserError
from ldd.images import to_bytes
from ldd.priors import Prior, identify

_CHUNK = 64  # images per decoding pass


@torch.no_grad()
def draw(codes: Codes, prior: Prior, rows: Tensor, generator: torch.Generator | None) -> Tensor:
    """One image of each code of `rows` (n,): (n, 3, H, W) uint8 on the CPU.

    Args:
        codes: on the prior's device.
        prior: with the decoder that belongs to the codes.
        rows: on the same device.
        generator: of the draws, left as it is; None takes the means.
    """
    images = []
    for part in (rows,) if prior.batch_dependent else rows.split(_CHUNK):
        # From the same state for each chunk: what a row draws follows from that and the row alone.
        latents, conditioning, noise, _ = codes(part, _copy(generator))
        images.append(to_bytes(prior.decode(prior.denoise(latents, conditioning, noise))).cpu())
    return torch.cat(images)


class StoredSampler:
    """Draws of an artefact's codes (an `ldd.evaluation.Sampler`).

    Args:
        distilled: with codes; of a merged set each sub-task's rows are decoded by its own decoder.
        prior: as of the run that made it; None builds the one its manifest names, if that is one of this package.
        device: where to decode.

    Raises:
        UserError: no codes, a prior that cannot be built, or another one than the codes belong to.
    """

    def __init__(
        self, distilled: DistilledSet, prior: Prior | None = None, device: torch.device | None = None
    ) -> None:
        if not distilled.codes:
            raise UserError("the set holds no codes to draw from; only its images can be used")
        self._device = torch.device("cpu") if device is None else device
        self._prior = (prior_of(distilled) if prior is None else prior).to(self._device)
        check_prior(distilled, self._prior)
        self._codes = stored_codes(distilled.codes, distilled.labels).to(self._device)
        self._parts = _parts(distilled)
        if len(self._parts) == 1:
            self._load(self._parts[0][1])

    def __call__(self, generator: torch.Generator | None) -> Tensor:
        """One draw of every code, (N, 3, H, W) uint8 on the CPU; None takes the means."""
        size = self._prior.image_size
        images = torch.empty(len(self._codes), 3, size, size, dtype=torch.uint8)
        for rows, decoder in self._parts:
            if len(self._parts) > 1:
                self._load(decoder)
            images[rows] = draw(self._codes, self._prior, rows.to(self._device), generator)
        return images

    def _load(self, decoder: Mapping[str, Tensor] | None) -> None:
        if decoder is not None:
            self._prior.load_trained(decoder)


def prior_of(distilled: DistilledSet) -> Prior:
    """The prior that a manifest names, if it is one of this package: somebody else's file must not run other code.

    Raises:
        UserError: it names none, or another one, or the prior is not where it was.
    """
    config: Any = distilled.manifest.get("config")
    for key in ("model", "prior"):
        config = config.get(key) if isinstance(config, Mapping) else None
    known = {
        f"{kind.__module__}.{kind.__qualname__}": kind
        for kind in vars(priors).values()
        if isinstance(kind, type) and issubclass(kind, Prior) and kind is not Prior
    }
    known |= {f"ldd.priors.{kind.__name__}": kind for kind in known.values()}
    name = config.get("class_path") if isinstance(config, Mapping) else None
    if name not in known:
        raise UserError(
            f"the set's manifest names no prior of this package ({name}), so that its codes cannot be decoded here; "
            "give the prior, or use a protocol with samples: 0, which trains on the images alone"
        )
    try:
        return known[name](**(config.get("init_args") or {}))
    except TypeError as error:
        raise UserError(
            f"the prior of the set's manifest cannot be built: {error}; give the prior"
        ) from error


def _copy(generator: torch.Generator | None) -> torch.Generator | None:
    return None if generator is None else torch.Generator().set_state(generator.get_state())


def check_prior(distilled: DistilledSet, prior: Prior) -> None:
    """Refuse another prior than the one that a set was made through.

    Raises:
        UserError: other frozen weights, or another image size.
    """
    expected = distilled.manifest.get("prior")
    same_size = prior.image_size == distilled.image_size
    if not same_size or (expected is not None and identify(prior)["sha256"] != expected["sha256"]):
        raise UserError(
            "the prior is not the one that the set's codes belong to (other frozen weights, or another image size); "
            "give that of the run that made the set"
        )


def _parts(distilled: DistilledSet) -> list[tuple[Tensor, dict[str, Tensor] | None]]:
    """Rows and decoder of each sub-task; one part where all rows share one decoder, or have none."""
    subtasks = distilled.manifest.get(manifests.SUBTASKS)
    if distilled.decoder is None or not subtasks:
        return [(torch.arange(len(distilled.labels)), distilled.decoder)]
    label_of = {info.wnid: info.label for info in distilled.classes}
    parts: list[tuple[Tensor, dict[str, Tensor] | None]] = []
    for number, subtask in enumerate(subtasks):
        mine = torch.tensor([label_of[wnid] for wnid in subtask["classes"]])
        rows = torch.isin(distilled.labels, mine).nonzero().flatten()
        prefix = f"{number}."
        decoder = {
            name.removeprefix(prefix): tensor
            for name, tensor in distilled.decoder.items()
            if name.startswith(prefix)
        }
        parts.append((rows, decoder))
    return parts
