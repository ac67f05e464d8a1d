"""The priors that are compared: what a command line names, how it is loaded, sampled and distilled through."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from ldd.data import DistillationData
from ldd.disk.hub import is_address
from ldd.disk.public import public_text
from ldd.disk.shipped import IN_PACKAGE, near_files, shipped_file
from ldd.errors import UserError
from ldd.evaluation.results.rows import REFERENCE
from ldd.images import DataSpec
from ldd.priors import LatentDiffusionPrior, Prior
from ldd.priors.folder import read_learned, read_left_out, read_optional_card
from ldd.priors.loading import locate
from ldd.priors.sampling import PriorSampler, is_unconditional
from ldd.runs.options import parse
from ldd.runs.parser import Parser
from ldd.runtime.classes import imported_class

LEFT_OUT, UNKNOWN = "left out", "unknown"
"""What is known of a prior and the test images of the data, where it has not learned some of them."""

_NAME = re.compile(r"[\w.-]+")
_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Candidate:
    """A prior of the comparison.

    Attributes:
        name: in tables, and of its folder in the results.
        typed: folder, name or YAML file, as the command line has it.
        settings: arguments of `LatentDiffusionPrior` that are not its defaults.
    """

    name: str
    typed: str
    settings: Mapping[str, Any]

    def load(self, **changed: Any) -> LatentDiffusionPrior:  # noqa: ANN401 - arguments of the prior
        """Return the prior, for samples as its settings have it."""
        return LatentDiffusionPrior(**{**self.settings, **changed})

    def for_steps(self, loaded: LatentDiffusionPrior, spec: DataSpec) -> LatentDiffusionPrior:
        """Return the prior at the data's image size, through which a step distils: the loaded one where it fits."""
        return loaded if loaded.image_size == spec.image_size else self.load(image_size=spec.image_size)

    def _sampler(self, loaded: LatentDiffusionPrior, per_class: int, seed: int) -> PriorSampler:
        """Return how its samples are drawn: by its YAML's steps and guidance, else as `latentdd prior sample` does."""
        how = self.settings.get("num_steps") or None, self.settings.get("guidance_scale")
        return PriorSampler.suiting(loaded, per_class, seed, *how)

    def checked(self, spec: DataSpec, per_class: int, seed: int) -> tuple[LatentDiffusionPrior, PriorSampler]:
        """Return the prior and how it is sampled, once it is known to suit the data's classes and image size.

        Raises:
            UserError: no such prior, a class that it does not know, none at all, a size or steps that it cannot have.
        """
        try:
            loaded = self.load()
            if is_unconditional(loaded):
                raise UserError("samples of an unconditional prior belong to no class; leave it out")
            loaded.rows(spec.classes)
            self.for_steps(loaded, spec)
            return loaded, self._sampler(loaded, per_class, seed)
        except UserError as error:
            raise UserError(f"PRIOR {self.name} ({self.typed}): {error}") from error

    def test_images(self, data: DistillationData) -> tuple[str, str]:
        """Return how many of the test images it has learned, or that they were left out, and what says so.

        A prior of `latentdd prior train` keeps hashes of the files that it has learned, and in `prior.json` what it was
        trained beside; the model card of older ones has a fingerprint, over names and sizes, of what was left out.
        """
        folder = locate(str(self.settings["path_or_hub_id"]), ())
        learned, test = read_learned(folder), data.contents_of("test")
        if learned is not None:
            seen = int(torch.isin(test, learned).sum())
            return f"learned {seen:,} of {len(test):,}" if seen else LEFT_OUT, "the files that it has learned"
        card, now = read_optional_card(folder), data.fingerprints_of("test")
        stated = card.data if card is not None and card.data is not None else {}
        if (stated.get("format"), stated.get("test")) == (now["format"], now["test"]):
            return LEFT_OUT, "prior.json: it was trained beside these test images"
        if read_left_out(folder) == data.spec.fingerprint:
            return LEFT_OUT, "its model card, by names and sizes of the test images"
        return UNKNOWN, "it does not say that these test images were left out"


def read_candidates(words: Sequence[str]) -> list[Candidate]:
    """Return the priors that a command line names: folder, name, hub id or YAML file, or NAME=one of these.

    Raises:
        UserError: two of one name, or a YAML file that is not of a `LatentDiffusionPrior`.
    """
    found = [_candidate(word) for word in words]
    names = [one.name for one in found]
    for one in found:
        if names.count(one.name) > 1 or one.name == REFERENCE:
            raise UserError(
                f"PRIOR ({one.typed}) would be called {one.name}, as another row of the table is; name it: "
                f"NAME={one.typed}"
            )
    return found


def _candidate(word: str) -> Candidate:
    name, equals, rest = word.partition("=")
    named = bool(equals and rest) and bool(_NAME.fullmatch(name)) and not Path(word).exists()
    typed = rest if named else word
    settings = _of_file(typed) if typed.endswith(_YAML) else {"path_or_hub_id": typed}
    return Candidate(name if named else _called(typed), typed, settings)


def _called(typed: str) -> str:
    """Return a short name: of the file, the folder (its parent's for `runs/x/prior`), the repository."""
    if typed.startswith(IN_PACKAGE):
        return typed.removeprefix(IN_PACKAGE)
    if is_address(typed):
        typed = typed.partition("@")[0]
    elif not typed.endswith(_YAML):
        typed = str(Path(typed).absolute())
    place = Path(typed)
    last = place.parent.name if place.name == "prior" else place.stem if place.suffix in _YAML else place.name
    return "-".join(_NAME.findall(last)) or "prior"


def _of_file(typed: str) -> dict[str, Any]:
    """Return the settings in a component's YAML file, here or among those of the package."""
    file = shipped_file(typed, "--prior") or Path(typed).expanduser()
    if not file.is_file():
        raise UserError(f"PRIOR ({typed}) does not exist{near_files(typed) or '; check the path'}")
    parser = Parser(prog="latentdd prior compare")
    parser.add_subclass_arguments(Prior, "prior")
    chosen = parse(parser, ["--prior", str(file)]).prior
    if imported_class(chosen.class_path, Prior) is not LatentDiffusionPrior:
        raise UserError(
            f"PRIOR ({typed}) is a {chosen.class_path}, which has no diffusion model to sample from; give a "
            "LatentDiffusionPrior"
        )
    usual = {name: one.default for name, one in signature(LatentDiffusionPrior).parameters.items()}
    return {name: value for name, value in vars(chosen.init_args).items() if value != usual[name]}


def shown_path(candidate: Candidate) -> str:
    """Return the prior as typed, without what only this machine knows."""
    return public_text(candidate.typed, "")
