"""`latentdd prior sample`: a labelled grid of what a prior draws."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from PIL import Image
from rich.progress import track
from torch import Tensor

from ldd.classes import ClassInfo, to_bytes
from ldd.errors import UserError
from ldd.files import atomic_file
from ldd.preview import MAX_IMAGES, MAX_ROWS, draw_grid
from ldd.priors import LatentDiffusionPrior
from ldd.seeding import generator

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
    unconditional = prior.null(1).shape[1] == 0
    if unconditional and wanted:
        raise UserError(
            f"--classes {' '.join(wanted)}: the prior is unconditional and knows no classes; leave it out"
        )
    if not unconditional and not wanted:
        raise UserError("--classes is needed: the prior has no table of classes; name what to draw")
    names = list(dict.fromkeys(wanted)) or ["samples"]
    return [ClassInfo(place, place, name, name) for place, name in enumerate(names)]


def sample_images(
    prior: LatentDiffusionPrior,
    info: ClassInfo,
    n: int,
    *,
    num_steps: int,
    guidance_scale: float,
    seed: int,
) -> Tensor:
    """Images (n, 3, H, W) uint8 of one class; they depend on the arguments alone, not on other classes drawn."""
    latents = prior.sample(
        prior.rows([info]).expand(n),
        generator(seed, "prior sample", info.wnid),
        num_steps=num_steps,
        guidance_scale=guidance_scale,
    )
    with torch.no_grad():
        return to_bytes(prior.decode(latents)).cpu()


def draw_prior(
    prior: LatentDiffusionPrior,
    classes: Sequence[ClassInfo],
    per_class: int,
    *,
    num_steps: int,
    guidance_scale: float,
    seed: int,
) -> Image.Image:
    """A column of `per_class` images under each class's name; shows a progress bar."""
    images = [
        sample_images(prior, info, per_class, num_steps=num_steps, guidance_scale=guidance_scale, seed=seed)
        for info in track(classes, "sampling", transient=True)
    ]
    labels = torch.arange(len(classes)).repeat_interleave(per_class)
    named = [ClassInfo(place, info.id, info.wnid, info.name) for place, info in enumerate(classes)]
    return draw_grid(torch.cat(images), labels, named)


def main(arguments: Sequence[str]) -> None:
    """Run the action."""
    options = _parser().parse_args(list(arguments))
    out = Path(options.out)
    if out.suffix.lower() != ".png":
        raise UserError(f"--out ({out}) must end in .png")
    if options.per_class > MAX_ROWS:
        raise UserError(f"--per-class ({options.per_class}) is too many for a grid; at most {MAX_ROWS}")
    prior = LatentDiffusionPrior(options.prior)
    prior.schedule.steps(options.num_steps)
    classes = classes_to_draw(prior, options.classes)
    if len(classes) * options.per_class > MAX_IMAGES:
        raise UserError(
            f"--classes names {len(classes)} classes, which at --per-class {options.per_class} is more than the "
            f"{MAX_IMAGES} images of a grid; choose fewer"
        )
    prior.to("cuda" if torch.cuda.is_available() else "cpu")
    with atomic_file(out) as beside:  # opened first: an unwritable place shows before the sampling
        draw_prior(
            prior,
            classes,
            options.per_class,
            num_steps=options.num_steps,
            guidance_scale=options.guidance_scale,
            seed=options.seed,
        ).save(beside, format="PNG")
    left_out = len(prior.classes) - len(classes)
    others = f"; --classes names the other {left_out}" if left_out > 0 and not options.classes else ""
    print(f"{len(classes)} x {options.per_class} images drawn to {out}{others}")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="latentdd prior sample", description="Draw a labelled grid of what a prior generates."
    )
    parser.add_argument("prior", type=str, help="Prior folder, embedded:digits, or a hub id.")
    parser.add_argument("--out", type=str, required=True, help="Picture to write, *.png.")
    parser.add_argument(
        "--classes", type=str, nargs="+", default=[], help="WordNet ids, folder names or class names."
    )
    parser.add_argument("--per-class", type=PositiveInt, default=5, help="Images of each class, at most 10.")
    parser.add_argument("--num-steps", type=PositiveInt, default=25, help="DDIM steps.")
    parser.add_argument(
        "--guidance-scale", type=NonNegativeFloat, default=2.0, help="Classifier-free guidance; 1: none."
    )
    parser.add_argument("--seed", type=int, default=0, help="Of the initial noise.")
    return parser
