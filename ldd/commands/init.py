"""`latentdd init`: recipes that suit one's own folder of images, with the minutes they take."""

from collections.abc import Sequence
from pathlib import Path

import rich

from ldd.disk.locks import writing
from ldd.planning.own_images import FIT, PRIOR, OwnRecipes, Survey
from ldd.runs.ending import Ending
from ldd.runs.options import parse
from ldd.runs.parser import Parser
from ldd.runtime.tables import facts_table


def init(
    root: str,
    licence: str,
    out: str | None = None,
    image_size: int | None = None,
    images_per_class: int = 1,
    plan: bool = True,
) -> Ending:
    """Look at a folder of images and write two recipes that suit it: one for its prior, one for the set.

    Args:
        root: folder with train/<class>/ and val/<class>/ (or test/), or with a folder for each class.
        licence: terms of the images. They travel into the prior and every set made with it.
        out: folder for prior.yaml and fit.yaml, neither of which may be there; null takes recipes/<name of the folder>.
        image_size: in pixels, a multiple of 16; null takes the largest of 32, 64 and 128 that the images fill, on a
            CPU at most 64.
        images_per_class: IPC of the set.
        plan: measure a few steps of both recipes, and say what all of them will take on this machine.

    Raises:
        UserError: a folder of another form, or a number that does not suit it.
    """
    survey = Survey.of(root)
    size = survey.image_size if image_size is None else image_size
    recipes = OwnRecipes.suiting(survey, root, licence, image_size=size, images_per_class=images_per_class)
    folder = Path(out) if out is not None else Path("recipes") / recipes.run.name
    recipes.refuse_existing(folder)
    rich.print(survey.table(size))
    minutes = recipes.minutes() if plan else {}
    with writing(folder):
        recipes.write(folder, survey, minutes)
    if minutes:
        rich.print(facts_table("what it takes on this machine", minutes))
    return Ending(
        (folder / PRIOR, folder / FIT),
        ("prior", "train", "--config", folder / PRIOR),
        (("fit", "--config", folder / FIT), ("report", recipes.run, "--out", recipes.run / "report.html")),
    )


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    parser = Parser(prog=f"latentdd {verb}", description=(init.__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "root",
        type=str,
        help="Folder with train/<class>/ and val/<class>/ (or test/), or with a folder for each class.",
    )
    parser.add_function_arguments(init, skip={"root"}, as_positional=False)
    return init(**vars(parse(parser, arguments)))
