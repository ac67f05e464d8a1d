"""From codes to images: with their graph in a training step, as bytes in a distilled set."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldd import priors
from ldd.artefact.identity import identify
from ldd.artefact.packing import check_packing, grow, pack, shrink
from ldd.artefact.set import DistilledSet
from ldd.codes import Codes, CodesFactory, stored_codes
from ldd.disk.files import read_yaml
from ldd.disk.public import public_configuration
from ldd.errors import UserError
from ldd.images import DataSpec, per_channel, saturate, to_bytes
from ldd.priors import Prior
from ldd.runtime import seeding
from ldd.runtime.classes import dotted_name
from ldd.runtime.devices import send
from ldd.students.protocol import Protocol

RELEASED_MEAN = (0.4377, 0.4438, 0.4728)
"""What the released code (as GLaD's) subtracts from synthetic images; real ones get ImageNet's mean."""


@dataclass(frozen=True)
class Quirks:
    """Defects of the released LD3M code that its numbers were made with; all off by default.

    Training steps have them, the artefact never has. Three more are options elsewhere:
    `RealEncodings(normalised_input)`, `TrajectoryMatching(halved_gradient)` and the protocol `ld3m-released`.

    Attributes:
        redrawn_noise: draw new noise for all codes in every step, in place of each code's own.
        mismatched_mean: normalise synthetic images with `RELEASED_MEAN` instead of the real images' mean.
        hard_clamp: give pixels outside [-1, 1] no gradient.
        mismatched_noise: match images of one noise, and send their gradient back through those of another, as two
            passes that each draw their own do; takes a synthesis more.
    """

    redrawn_noise: bool = False
    mismatched_mean: bool = False
    hard_clamp: bool = False
    mismatched_noise: bool = False


class Synthesis:
    """Makes images of codes: latents, conditioning and noise -> denoise -> decode -> clamp.

    Codes and prior are on one device, the prior with the decoder that belongs to the codes. Only training steps
    have quirks, and only quirks need the run's `spec` and `seed`.
    """

    def __init__(
        self,
        codes: Codes,
        prior: Prior,
        quirks: Quirks = Quirks(),
        spec: DataSpec | None = None,
        seed: int = 0,
    ) -> None:
        if quirks.redrawn_noise and "noise" in codes.groups():
            raise UserError(
                "quirks.redrawn_noise (true) draws the noise anew that codes.learn_noise learns; set one of them to "
                "false"
            )
        self.codes = codes
        self.prior = prior
        self.quirks = quirks
        self._spec = spec
        self._seed = seed
        self._labels: tuple[Tensor, Tensor] | None = None
        self._redrawn: dict[str, tuple[int, Tensor]] = {}

    def __call__(
        self, rows: Tensor, generator: torch.Generator | None = None, step: int | None = None
    ) -> Tensor:
        """Return images (n, C, H, W) in [-1, 1] of code `rows`, with graph; means without a generator.

        Without a step they are as the artefact has them.
        """
        return self.decode(self.denoise(rows, generator, step), step)

    def denoise(
        self,
        rows: Tensor,
        generator: torch.Generator | None = None,
        step: int | None = None,
        checkpointed: int = 0,
        *,
        shown: bool = False,
    ) -> Tensor:
        """Return clean latents (n, c, h, w) of code `rows`, the first part of the call.

        Backward makes the first `checkpointed` calls of the prior's network again instead of keeping activations. With
        `shown` the noise is that of the images that are matched where these have their own (a quirk).
        """
        latents, conditioning, noise, _ = self.codes(rows, generator)
        if step is not None and (self.quirks.redrawn_noise or shown):
            noise = self._redraw(noise, step, "shown noise" if shown else "redrawn noise")[rows]
        return self.prior.denoise_checkpointed(latents, conditioning, noise, checkpointed)

    def matched(self, images: Tensor, rows: Tensor, generator: torch.Generator, step: int) -> Tensor:
        """Return what is matched in the place of images of `rows`, which give it their gradient: mostly they."""
        if not self.quirks.mismatched_noise:
            return images
        with torch.no_grad():
            shown = self.decode(self.denoise(rows, generator, step, shown=True), step)
        return images + (shown - images).detach()

    def _redraw(self, like: Tensor, step: int, purpose: str) -> Tensor:
        """The step's noise of all codes, so that chunks and ranks make no difference; drawn once."""
        if self._redrawn.get(purpose, (-1,))[0] != step:
            drawing = seeding.generator(self._seed, purpose, step)
            noise = torch.randn((len(self.codes), *like.shape[1:]), generator=drawing)
            self._redrawn[purpose] = step, send(noise, like.device).to(like.dtype)
        return self._redrawn[purpose][1]

    def decode(self, latents: Tensor, step: int | None = None) -> Tensor:
        """Return images of clean latents, the second part of the call."""
        images, side = self.prior.decode(latents), self.codes.packing
        hard = step is not None and self.quirks.hard_clamp
        images = images.clamp(-1, 1) if hard else saturate(images)
        if side > 1:
            images = grow(shrink(images, side), side)
        if step is None:
            return images
        if self.quirks.mismatched_mean:  # `spec.normalise` of the shifted images subtracts RELEASED_MEAN
            assert self._spec is not None
            images = images + 2 * (per_channel(self._spec.mean, images) - per_channel(RELEASED_MEAN, images))
        return images

    @torch.no_grad()
    def draw(
        self, rows: Tensor | None = None, generator: torch.Generator | None = None, chunk_size: int = 64
    ) -> Tensor:
        """Return images of `rows` (None: all codes) as a set stores them, (n, 3, H, W) uint8; means if not drawn."""
        if rows is None:
            rows = torch.arange(len(self.codes), device=self.codes.labels.device)
        images = []
        for part in self.split(rows, chunk_size):
            # From the same state for each chunk: what a row draws follows from that and the row alone.
            same = None if generator is None else torch.Generator().set_state(generator.get_state())
            images.append(to_bytes(self._stored(part, same)).cpu())
        whole = torch.cat(images)
        return pack(whole, self.codes.packing) if self.codes.packing > 1 else whole

    def _stored(self, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.codes.packing == 1:
            return self(rows, generator)
        return shrink(saturate(self.prior.decode(self.denoise(rows, generator))), self.codes.packing)

    def split(self, rows: Tensor, chunk_size: int) -> tuple[Tensor, ...]:
        """Return the parts of `rows` that are decoded together: all of them where images depend on each other."""
        parts: tuple[Tensor, ...] = rows.split(len(rows) if self.prior.batch_dependent else chunk_size)
        return parts

    @property
    def labels_on_host(self) -> Tensor:
        """Labels of all codes, (N,) on the CPU; the device is asked once."""
        labels = self.codes.labels
        if self._labels is None or self._labels[0] is not labels:
            self._labels = labels, labels.cpu()
        return self._labels[1]


class StoredSampler:
    """Draws of an artefact's codes (an `ldd.evaluation.Sampler`), each sub-task's by its own decoder.

    Without a prior the one that the manifest names is built.

    Raises:
        UserError: no codes, a prior that cannot be built, or another one than the codes belong to.
    """

    def __init__(
        self, distilled: DistilledSet, prior: Prior | None = None, device: torch.device | None = None
    ) -> None:
        if not distilled.codes:
            raise UserError("the set holds no codes to draw from; only its images can be used")
        device = torch.device("cpu") if device is None else device
        self._prior = (prior_of(distilled) if prior is None else prior).to(device)
        check_prior(distilled, self._prior)
        self._synthesis = Synthesis(stored_codes(distilled.codes, distilled.labels).to(device), self._prior)
        self._parts = _parts(distilled)
        if len(self._parts) == 1:
            self._load(self._parts[0][1])

    def __call__(self, generator: torch.Generator | None) -> Tensor:
        """Return one draw of every code, (N, 3, H, W) uint8 on the CPU; None takes the means."""
        codes, size = self._synthesis.codes, self._prior.image_size
        images = torch.empty(len(codes), 3, size, size, dtype=torch.uint8)
        for rows, decoder in self._parts:
            if len(self._parts) > 1:
                self._load(decoder)
            images[rows] = self._synthesis.draw(rows.to(codes.labels.device), generator)
        return images

    def _load(self, decoder: Mapping[str, Tensor] | None) -> None:
        if decoder is not None:
            self._prior.load_trained(decoder)


def prior_of(distilled: DistilledSet) -> Prior:
    """Build the prior that a manifest names, if it is one of this package: a file must not run other code."""
    config = _prior_settings(distilled)
    kinds = [kind for kind in vars(priors).values() if isinstance(kind, type) and issubclass(kind, Prior)]
    known = {
        name: kind
        for kind in kinds
        for name in (dotted_name(kind), f"ldd.priors.{kind.__name__}")
        if kind is not Prior
    }
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
    except UserError as error:
        place = distilled.folder or "the set"
        raise UserError(
            f"the prior of the set's manifest cannot be built: {error}; its folder, or a link to it, is also found "
            f"under its own name next to {place}"
        ) from error


def _prior_settings(distilled: DistilledSet) -> Any:  # noqa: ANN401 - as in the file
    """Return class and arguments of the prior that a manifest names.

    A manifest tells no local paths: where the prior lies is in the run's own `config.yaml`, if the set still lies in
    the run; else a folder of the prior's name next to the set, or in it, is taken.
    """
    named = _settings_of(distilled.manifest.config)
    folder = distilled.folder
    if folder is None or not isinstance(named, Mapping):
        return named
    try:
        own = _settings_of(read_yaml(folder.parent / "config.yaml"))
    except UserError:  # the set was moved away from its run
        own = None
    if own is not None and public_configuration(own) == public_configuration(named):
        return own
    arguments = dict(named.get("init_args") or {})
    for name, value in arguments.items():
        is_name = isinstance(value, str) and re.fullmatch(r"[^/:]+", value) and not Path(value).exists()
        for beside in (folder.parent, folder) if is_name else ():
            if value not in (".", "..") and (beside / value).is_dir():
                arguments[name] = str(beside / value)
                break
    return {**named, "init_args": arguments}


def _settings_of(config: Any) -> Any:  # noqa: ANN401 - as in a file
    for key in ("model", "prior"):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def check_prior(distilled: DistilledSet, prior: Prior) -> None:
    """Raise unless a set was made through this prior."""
    expected = distilled.manifest.get("prior")
    same_size = prior.image_size == distilled.image_size
    if not same_size or (expected is not None and identify(prior)["sha256"] != expected["sha256"]):
        raise UserError(
            "the prior is not the one that the set's codes belong to (other frozen weights, or another image size); "
            "give the prior of the run that made the set"
        )


def _parts(distilled: DistilledSet) -> list[tuple[Tensor, dict[str, Tensor] | None]]:
    """Return rows and decoder of each sub-task; one part where all rows share one decoder, or have none."""
    decoders = distilled.manifest.decoders(distilled.decoder)
    if len(decoders) <= 1:
        return [(torch.arange(len(distilled.labels)), distilled.decoder)]
    label_of = {info.wnid: info.label for info in distilled.classes}
    parts: list[tuple[Tensor, dict[str, Tensor] | None]] = []
    for subtask, decoder in zip(distilled.manifest.subtasks or (), decoders, strict=True):
        labels = torch.tensor([label_of[wnid] for wnid in subtask.classes])
        parts.append((torch.isin(distilled.labels, labels).nonzero().flatten(), decoder))
    return parts


def stored_sampler(distilled: DistilledSet, protocol: Protocol, device: torch.device) -> StoredSampler | None:
    """Return a sampler of a set's codes; None where the protocol asks for no draws of it."""
    return StoredSampler(distilled, device=device) if protocol.draws_from(distilled) else None


def new_codes(factory: CodesFactory, prior: Prior, spec: DataSpec, images_per_class: int, seed: int) -> Codes:
    """Return codes of zeros with the conditions of their classes; the noise follows from the seed alone.

    Packed ones are as many as all stored images have parts.

    Raises:
        UserError: latents would be learned that no image depends on, or images cannot be cut as a packing says.
    """
    codes = _blank_codes(factory, prior, spec, images_per_class, seed)
    if codes.packing == 1:
        return codes
    check_packing(codes.packing, spec.image_size)
    return _blank_codes(factory, prior, spec, images_per_class * codes.packing**2, seed)


def _blank_codes(factory: CodesFactory, prior: Prior, spec: DataSpec, per_class: int, seed: int) -> Codes:
    labels = torch.arange(spec.num_classes).repeat_interleave(per_class)
    conditioning = prior.embed(prior.rows(spec.classes)[labels])
    shape = (len(labels), *prior.latent_shape)
    if prior.num_steps:
        noise = code_noise(shape, seed)
    else:  # nothing reads the noise or the conditioning
        noise, conditioning = torch.empty(len(labels), 0), conditioning[:, :0]
    codes = factory(labels, torch.zeros(shape), conditioning.detach().float(), noise)
    if not prior.reads_latents and codes.groups().keys() & {"latents", "spread"}:
        raise UserError(
            "codes.learn_latents (true): the prior's chain begins at pure noise, so that no image depends on the "
            "latents; set model.prior.init_args.start below 1 (0.5, say), or learn_latents and learn_spread to false "
            "and learn_noise to true"
        )
    return codes


def code_noise(shape: Sequence[int], seed: int) -> Tensor:
    """Return the noise (N, c, h, w) of the codes of a run with this seed."""
    return torch.randn(*shape, generator=seeding.generator(seed, "code noise"))
