"""`latentdd prior`: train a prior on your data, convert a published one, draw samples, compare, upload."""

import importlib
from collections.abc import Sequence

from ldd.disk.shipped import near
from ldd.errors import UserError
from ldd.runs.ending import Ending

ACTIONS = {
    "train": ("ldd.commands.prior.train", "a class-conditional latent diffusion prior on your own data"),
    "convert": ("ldd.commands.prior.convert", "an original latent-diffusion checkpoint to a prior folder"),
    "sample": ("ldd.commands.prior.sample", "draw a labelled grid from a prior"),
    "compare": (
        "ldd.commands.prior.compare",
        "which prior suits your data: what samples teach, likeness, cost",
    ),
    "push": ("ldd.commands.prior.push", "upload a prior to a model hub"),
}
"""Action -> (module with a function `main(arguments)`, help)."""


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run one action of `latentdd prior`."""
    if arguments and arguments[0] in ("-h", "--help"):
        listed = "\n".join(f"  {action:<9}{text}" for action, (_, text) in ACTIONS.items())
        print(f"usage: latentdd {verb} ACTION [options]\n\nactions:\n{listed}")
        print(f"\nlatentdd {verb} ACTION --help shows the options of one.")
        return Ending()
    if not arguments or arguments[0] not in ACTIONS:
        given = repr(arguments[0]) + near(arguments[0], ACTIONS, 0.6) if arguments else "nothing"
        raise UserError(f"expected one of: {', '.join(ACTIONS)}; got {given}")
    ending: Ending = importlib.import_module(ACTIONS[arguments[0]][0]).main(arguments[1:])
    return ending
