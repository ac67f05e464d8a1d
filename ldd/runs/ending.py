"""The last words of a verb: what it made, and the command that usually follows, ready to be copied."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import join
from typing import NamedTuple

from jsonargparse import Namespace
from lightning_utilities.core.rank_zero import rank_zero_only

from ldd.disk.shipped import configs_folder
from ldd.disk.stores import as_named

DATA = ("--data", "DATA.yaml")
"""Words of a next command that stand for the data; where the verb was given some, these take their place."""

_RECIPES_SIZE = 32  # data.image_size of `quickstart` and `folder`
_OF_A_RUN = ("distilled", "evaluation.csv", "evaluation.json", "previews")


class Ending(NamedTuple):
    """What a verb has to say at its end; every verb returns one.

    Attributes:
        made: files and folders, by the paths that were typed.
        next: words of the command of `latentdd` that usually follows.
        then: those after it, likewise.
    """

    made: Sequence[Path | str] = ()
    next: Sequence[object] = ()
    then: Sequence[Sequence[object]] = ()

    def after(self, typed: Sequence[str]) -> "Ending":
        """Return it with the data of the words that were typed in the place of `DATA`, if they name some."""
        words = given("--data", typed)
        at = list(self.next).index(DATA[0]) if words and {*DATA} <= {*self.next} else None
        return self if at is None else self._replace(next=(*self.next[:at], *words, *self.next[at + 2 :]))

    def tell(self) -> None:
        """Print it, on the first rank."""
        if getattr(rank_zero_only, "rank", 0):  # unset where no trainer and no ranks were needed
            return
        if self.made:
            print(f"made: {', '.join(map(as_named, self.made))}", flush=True)
        for what, words in (("next", self.next), *(("then", words) for words in self.then)):
            if words:
                print(f"{what}: latentdd {join(_named(str(word)) for word in words)}", flush=True)


def given(option: str, typed: Sequence[str]) -> list[str]:
    """Return the words of an option and of its parts (`--data`, `--data.root`), with their values."""
    return [word for word, chosen in _marked(option, typed) if chosen]


def without(option: str, typed: Sequence[str]) -> list[str]:
    """Return all other words."""
    return [word for word, chosen in _marked(option, typed) if not chosen]


def _marked(option: str, typed: Sequence[str]) -> Iterator[tuple[str, bool]]:
    chosen = False
    for word in typed:
        if word.startswith("-"):
            name = word.partition("=")[0]
            chosen = name == option or name.startswith(f"{option}.")
        yield word, chosen


def fit_on(data: Namespace) -> list[str]:
    """Return words of `latentdd fit` on the data that a verb's options name: a recipe, and what it has otherwise.

    Args:
        data: the section `data` of the options, parsed.
    """
    source = data.source.class_path
    recipe = {"DigitsSource": "quickstart", "FolderSource": "folder"}.get(source.rpartition(".")[2])
    settings = {"source": None if recipe else source, "root": data.root, "subset": data.subset}
    settings["image_size"] = None if data.image_size == _RECIPES_SIZE else data.image_size
    words = ["fit", "--config", recipe or "RECIPE.yaml"]
    for name, value in settings.items():
        if value is not None:
            words += [f"--data.{name}", value if isinstance(value, str) else json.dumps(value)]
    return words


def ending_of_run(run: Path | str) -> Ending:
    """Return what a run has made, and how a page is made of it."""
    made = [path for name in _OF_A_RUN if (path := Path(run) / name).exists()]
    return Ending(made, ("report", run, "--out", Path(run) / "report.html"))


def ending_of_set(path: str, *options: str) -> Ending:
    """Return that a set was made, and how it is evaluated."""
    out = Path(path).with_name(f"{Path(path).stem}_evaluation")
    return Ending((path,), ("evaluate", path, *DATA, *options, "--out", out))


def _named(word: str) -> str:
    """A shipped file by its name, which is found from anywhere; what lies in a store by its URL."""
    word = as_named(word)
    file = Path(word)
    if file.is_absolute() and file.is_relative_to(configs_folder()):
        return file.relative_to(configs_folder()).with_suffix("").as_posix()
    return word
