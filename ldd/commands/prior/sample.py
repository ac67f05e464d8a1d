"""`latentdd prior sample`: what a prior draws, as a labelled grid or as a set that networks can be trained on."""

import mimetypes
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from rich.progress import track
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize

from ldd.artefact import manifest as manifests
from ldd.artefact.picture import MAX_IMAGES, MAX_ROWS, draw_grid
from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData
from ldd.disk.files import atomic_file, check_writable, holds_files
from ldd.errors import UserError
from ldd.images import ClassInfo, DataSpec, Labelled, to_bytes
from ldd.initializers.samples import CHUNK, PURPOSE, sample_class
from ldd.priors import LatentDiffusionPrior
from ldd.runtime.ledger import DECODES, SAMPLE, measured
from ldd.runtime.seeding import generator

_DEFAULT_CLASSES = 20


def choose_classes(known: Sequence[ClassInfo], wanted: Sequence[str]) -> list[ClassInfo]:
    """The prior's classes that `wanted` names, by folder name (WordNet id) or readable name, each once.

    Args:
        known: the prior's own classes; not empty.
        wanted: names; several may stand in one string, separated by commas. None: the first 20 classes.

    Raises:
        UserError: a name the prior does not know, or one that several of its classes bear.
    """
    if not wanted:
        return list(known[:_DEFAULT_CLASSES])
    found: dict[str, list[ClassInfo]] = {}
    for info in known:
        for name in {info.wnid, info.name}:
            found.setdefault(name, []).append(info)
    names = [
        part for word in wanted for part in ([word] if word in found else map(str.strip, word.split(",")))
    ]
    unknown = [name for name in names if name not in found]
    if unknown:
        shown = ", ".join(f"{info.wnid} ({info.name})" for info in known[:_DEFAULT_CLASSES])
        more = len(known) - _DEFAULT_CLASSES
        raise UserError(
            f"--classes: the prior does not know {', '.join(unknown)}; it knows {shown}"
            + (f" and {more} more (its prior.json lists them)" if more > 0 else "")
        )
    for name in names:
        if len(found[name]) > 1:
            raise UserError(
                f"--classes: {name} names several classes; give one of {', '.join(c.wnid for c in found[name])}"
            )
    return list(dict.fromkeys(found[name][0] for name in names))


def classes_to_draw(prior: LatentDiffusionPrior, wanted: Sequence[str]) -> list[ClassInfo]:
    """Classes the prior can be asked for; a prior of prompts takes any name, an unconditional one none.

    Raises:
        UserError: see `choose_classes`; names for an unconditional prior, or none for one of prompts.
    """
    if prior.classes:
        return choose_classes(prior.classes, wanted)
    if _unconditional(prior) and wanted:
        raise UserError(
            f"--classes {' '.join(wanted)}: the prior is unconditional and knows no classes; leave it out"
        )
    if not _unconditional(prior) and not wanted:
        raise UserError("--classes is needed: the prior has no table of classes; name what to draw")
    names = list(dict.fromkeys(wanted)) or ["samples"]
    return [ClassInfo(place, place, name, name) for place, name in enumerate(names)]


@dataclass(frozen=True)
class Drawing:
    """How images are drawn.

    Attributes:
        per_class: images of each class.
        num_steps: DDIM steps.
        guidance_scale: of classifier-free guidance; 1: none.
        seed: of the initial noise.
    """

    per_class: int
    num_steps: int
    guidance_scale: float
    seed: int

    def images(self, prior: LatentDiffusionPrior, info: ClassInfo) -> Tensor:
        """Images (n, 3, H, W) uint8 of one class; they depend on these settings alone, not on other classes drawn."""
        latents = sample_class(
            prior,
            prior.rows([info]),
            self.per_class,
            generator(self.seed, PURPOSE, info.wnid),
            num_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
        )
        with torch.no_grad():
            return torch.cat([to_bytes(prior.decode(part)).cpu() for part in latents.split(CHUNK)])

    def of_classes(self, prior: LatentDiffusionPrior, classes: Sequence[ClassInfo]) -> Labelled:
        """Images of all classes, class-major, with their places in `classes`; shows a progress bar."""
        drawn = [self.images(prior, info) for info in track(classes, "sampling", transient=True)]
        return Labelled(torch.cat(drawn), torch.arange(len(classes)).repeat_interleave(self.per_class))


def sampled_set(prior: LatentDiffusionPrior, spec: DataSpec, drawing: Drawing, source: str) -> DistilledSet:
    """Plain samples of the data's classes as a distilled set, at the data's image size.

    The prior draws at its own size; where the data's differs, images are resized as real ones are (bilinear,
    antialiased).

    Args:
        prior: on the device to sample on.
        spec: of the data the set stands for.
        drawing: how.
        source: what the user called the prior, for the manifest.
    """
    started = time.perf_counter()
    images, labels = drawing.of_classes(prior, spec.classes)
    if images.shape[-1] != spec.image_size:
        images = resize(images, [spec.image_size] * 2, InterpolationMode.BILINEAR, antialias=True)
    return DistilledSet.from_images(
        images,
        labels,
        spec.classes,
        mean=spec.mean,
        std=spec.std,
        config={"prior": source, "drawn_at": prior.image_size, **asdict(drawing)},
        seed=drawing.seed,
        test_split_fingerprint=spec.fingerprint,
        licences={"prior": prior.licence, "data": spec.licence},
        stages={
            SAMPLE: {
                **measured(time.perf_counter() - started, next(prior.parameters()).device),
                DECODES: len(images),
            }
        },
    )


def main(arguments: Sequence[str]) -> None:
    """Run the action."""
    parser = _parser(
        data=any(a.startswith("--data") for a in arguments) or bool({"-h", "--help"} & {*arguments})
    )
    options = parser.instantiate(parser.parse_args(list(arguments)))
    out, spec = Path(options.out), options.data.spec if "data" in options else None
    grid = out.suffix.lower() == ".png"
    _check(out, grid=grid, per_class=options.per_class, classes=options.classes, data=spec is not None)
    prior = LatentDiffusionPrior(options.prior, prompt=options.prompt)
    prior.schedule.steps(options.num_steps)
    drawing = Drawing(options.per_class, options.num_steps, options.guidance_scale, options.seed)
    if spec is not None:
        _check_classes(prior, spec)
    prior.to("cuda" if torch.cuda.is_available() else "cpu")
    if not grid and spec is not None:
        check_writable(out.parent)
        sampled_set(prior, spec, drawing, options.prior).save(out)
        resized = f", drawn at {prior.image_size} px" * (prior.image_size != spec.image_size)
        print(
            f"{spec.num_classes} x {drawing.per_class} images of {spec.image_size} px written to {out}{resized}"
        )
        return
    classes = classes_to_draw(prior, options.classes) if spec is None else list(spec.classes)
    _draw_grid(prior, classes, drawing, out)
    left_out = len(prior.classes) - len(classes)
    others = f"; --classes names the other {left_out}" if left_out > 0 and not options.classes else ""
    print(f"{len(classes)} x {drawing.per_class} images drawn to {out}{others}")


def _draw_grid(
    prior: LatentDiffusionPrior, classes: Sequence[ClassInfo], drawing: Drawing, out: Path
) -> None:
    if len(classes) * drawing.per_class > MAX_IMAGES:
        raise UserError(
            f"--classes names {len(classes)} classes, which at --per-class {drawing.per_class} is more than the "
            f"{MAX_IMAGES} images of a grid; choose fewer"
        )
    named = [replace(info, label=place) for place, info in enumerate(classes)]
    with atomic_file(out) as beside:  # opened first: an unwritable place shows before the sampling
        draw_grid(*drawing.of_classes(prior, classes), named).save(beside, format="PNG")


def _check(out: Path, *, grid: bool, per_class: int, classes: Sequence[str], data: bool) -> None:
    if grid and per_class > MAX_ROWS:
        raise UserError(
            f"--per-class ({per_class}) is too many for a grid; at most {MAX_ROWS}, or name a folder in --out to write "
            "a set"
        )
    if not grid and (not data or str(mimetypes.guess_type(out.name)[0]).startswith("image")):
        raise UserError(
            f"--out ({out}) must end in .png for a grid; for a set of images to train on it is a folder's name, and "
            "--data FILE says whose classes, image size and test split the set has"
        )
    if data and classes:
        raise UserError(
            f"--classes {' '.join(classes)}: with --data the classes are the data's; use --data.subset"
        )
    if not grid and holds_files(out) and not (out / manifests.NAME).exists():
        raise UserError(f"--out ({out}) holds files that are no distilled set; name a new folder")


def _check_classes(prior: LatentDiffusionPrior, spec: DataSpec) -> None:
    if _unconditional(prior):
        raise UserError(
            "--data: the prior is unconditional, so that its samples belong to no class; leave it out"
        )
    prior.rows(spec.classes)  # refuses what the prior does not know before anything is drawn


def _unconditional(prior: LatentDiffusionPrior) -> bool:
    return prior.null(1).shape[1] == 0


def _parser(*, data: bool) -> ArgumentParser:
    parser = ArgumentParser(
        prog="latentdd prior sample",
        description="Draw a labelled grid of what a prior generates, or a set of samples to train networks on.",
    )
    parser.add_argument("prior", type=str, help="Prior folder, embedded:digits, or a hub id.")
    parser.add_argument(
        "--out", type=str, required=True, help="Picture to write, *.png; with --data also a folder for a set."
    )
    parser.add_argument(
        "--classes", type=str, nargs="+", default=[], help="WordNet ids, folder names or class names."
    )
    parser.add_argument(
        "--per-class", type=PositiveInt, default=5, help="Images of each class, at most 10 in a grid."
    )
    parser.add_argument("--num-steps", type=PositiveInt, default=25, help="DDIM steps.")
    parser.add_argument(
        "--guidance-scale", type=NonNegativeFloat, default=2.0, help="Classifier-free guidance; 1: none."
    )
    parser.add_argument(
        "--prompt", type=str | None, default=None,
        help="Template of a text-to-image prior's prompts with {name} and {wnid}; default 'a photo of a {name}'.",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="Of the initial noise.")
    if data:
        parser.add_class_arguments(DistillationData, "data")
    return parser
