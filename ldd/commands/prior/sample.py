"""`latentdd prior sample`: plain samples of a prior, as a labelled grid or as a set to train networks on."""

import mimetypes
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeFloat, PositiveInt

from ldd.artefact import manifest as manifests
from ldd.artefact.picture import MAX_ROWS
from ldd.artefact.samples import sampled_set, write_samples_grid
from ldd.data import DistillationData
from ldd.disk.files import check_writable, holds_files
from ldd.disk.locks import writing
from ldd.disk.shipped import IN_PACKAGE
from ldd.errors import UserError
from ldd.priors import LatentDiffusionPrior
from ldd.priors.sampling import PriorSampler, classes_to_draw, is_unconditional
from ldd.runs.ending import Ending, ending_of_set
from ldd.runs.history import record_command
from ldd.runs.options import instantiate, parse
from ldd.runs.parser import Parser


def main(arguments: Sequence[str]) -> Ending:
    """Draw the samples."""
    parser = _parser(
        data=any(a.startswith("--data") for a in arguments) or bool({"-h", "--help"} & {*arguments})
    )
    options = parse(parser, arguments)
    with writing(options.out):
        return _sample(instantiate(parser, options), ["prior", "sample", *arguments]).after(arguments)


def _sample(options: Namespace, typed: Sequence[str]) -> Ending:
    out, spec = Path(options.out), options.data.spec if "data" in options else None
    grid = out.suffix.lower() == ".png"
    _check(out, grid=grid, per_class=options.per_class, classes=options.classes, data=spec is not None)
    prior = LatentDiffusionPrior(options.prior, options.num_steps, prompt=options.prompt)
    given = options.num_steps, options.guidance_scale
    sampler = PriorSampler.suiting(prior, options.per_class, options.seed, *given)
    if spec is not None:
        if is_unconditional(prior):
            raise UserError("--data: samples of an unconditional prior belong to no class; leave it out")
        prior.rows(spec.classes)  # raises for an unknown class, before anything is drawn
    prior.to("cuda" if torch.cuda.is_available() else "cpu")
    if not grid and spec is not None:
        check_writable(out.parent)
        sampled_set(prior, spec, sampler, options.prior).save(out)
        record_command(out, typed)
        resized = f", drawn at {prior.image_size} px" * (prior.image_size != spec.image_size)
        print(f"{spec.num_classes} x {sampler.per_class} images of {spec.image_size} px{resized}")
        return ending_of_set(str(out))
    classes = classes_to_draw(prior, options.classes) if spec is None else list(spec.classes)
    write_samples_grid(out, prior, classes, sampler)
    left_out = len(prior.classes) - len(classes)
    others = f"; --classes names the other {left_out}" if left_out > 0 and not options.classes else ""
    print(f"{len(classes)} x {sampler.per_class} images{others}")
    own: tuple[str, ...] = ("folder", "--data.root", "ROOT", "--model.prior.path_or_hub_id", options.prior)
    if options.prior.startswith(IN_PACKAGE):  # all of the digits, each with a recipe of its name
        own = ("quickstart", "--model.prior", options.prior.removeprefix(IN_PACKAGE).replace("-", "_"))
    return Ending((out,), ("fit", "--config", *own))


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
        raise UserError(f"--out ({out}) holds files that are not a distilled set; name a new folder")


def _parser(*, data: bool) -> Parser:
    parser = Parser(
        prog="latentdd prior sample",
        description="Draw a labelled grid of what a prior generates, or a set of samples to train networks on.",
    )
    parser.add_argument(
        "prior", type=str, help="Prior folder, embedded:NAME, or a hub id (owner/name, hf://owner/name)."
    )
    parser.add_argument(
        "--out", type=str, required=True, help="Picture to write, *.png; with --data also a folder for a set."
    )
    parser.add_argument(
        "--classes", type=str, nargs="+", default=[], help="WordNet ids, folder names or class names."
    )
    parser.add_argument(
        "--per-class", type=PositiveInt, default=5, help="Images of each class, at most 10 in a grid."
    )
    parser.add_argument(
        "--num-steps", type=PositiveInt | None, default=None,
        help="DDIM or Euler steps; default 25, or 1 of a prior that was trained for one.",
    )  # fmt: skip
    parser.add_argument(
        "--guidance-scale", type=NonNegativeFloat | None, default=None,
        help="Classifier-free guidance, 1: none; default 2, or 1 of a prior in which guidance was learned.",
    )  # fmt: skip
    parser.add_argument(
        "--prompt", type=str | None, default=None,
        help="Template of a text-to-image prior's prompts with {name} and {wnid}; default 'a photo of a {name}'.",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="Of the initial noise.")
    if data:
        parser.add_class_arguments(DistillationData, "data")
    return parser
