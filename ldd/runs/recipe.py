"""A recipe of `latentdd fit` as other verbs read it: parsed, checked and built, but not run."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from jsonargparse import Namespace

from ldd.callbacks import CrossArchitecture, RecordExperts
from ldd.data import DistillationData
from ldd.disk.files import atomic_file
from ldd.disk.stores import as_named
from ldd.distiller.module import Distiller
from ldd.runs.command_line import DistillationCLI
from ldd.runs.folder import MAY_CHANGE, changes, flattened
from ldd.runs.options import instantiate

_OF_STEPS = (
    *("max_steps", "min_steps", "max_epochs", "min_epochs", "max_time", "fast_dev_run"),
    *("limit_train_batches", "overfit_batches", "accumulate_grad_batches", "gradient_clip_val"),
    *("gradient_clip_algorithm", "precision", "plugins", "callbacks"),
)
"""Settings of `trainer` that the codes depend on; the others say where and how it runs, and what it shows."""


class Changes(NamedTuple):
    """Settings that differ, as `name: then -> now`.

    Attributes:
        of_sets: settings on which the sets of sub-tasks depend.
        others: settings of the evaluation, of places of data and models, of memory, machines and files.
    """

    of_sets: list[str]
    others: list[str]


class Recipe(DistillationCLI):
    """Options of `latentdd fit`, resolved.

    Args:
        arguments: `--config RECIPE.yaml`, and options that replace its settings.
        folder: default of `trainer.default_root_dir`.
        program: which is named in messages.

    Raises:
        SystemExit: options that `latentdd fit` would refuse, with its message and code 2.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, program: str = "latentdd federate") -> None:
        self.program = program
        super().__init__(Distiller, str(folder), arguments)

    def before_instantiate_classes(self) -> None:
        """Do nothing: no run is started, so no folder is refused."""

    def instantiate_classes(self) -> None:
        """Do nothing yet."""

    @cached_property
    def _built(self) -> Namespace:
        return instantiate(self.parser, self.config)

    @property
    def data(self) -> DistillationData:
        """The data, not set up."""
        return cast(DistillationData, self._built.data)

    @property
    def model(self) -> Distiller:
        """The distiller for all classes of the data."""
        return cast(Distiller, self._built.model)

    @property
    def evaluation(self) -> CrossArchitecture:
        """The evaluation of the set."""
        return cast(CrossArchitecture, self._built.evaluation)

    @property
    def experts(self) -> RecordExperts:
        """The recording of missing experts."""
        return cast(RecordExperts, self._built.experts)

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.config.seed_everything)

    @property
    def evaluates(self) -> bool:
        """Whether there is an evaluation (`trainer.limit_val_batches: 0` switches it off)."""
        return bool(self.config.trainer.limit_val_batches != 0)

    @cached_property
    def resolved(self) -> dict[str, Any]:
        """All settings, as `config.yaml` has them."""
        settings: dict[str, Any] = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        settings["overwrite"] = False
        return settings

    def write(self, path: Path) -> None:
        """Write all settings, for `latentdd fit --config`; those who run it name the folder."""
        settings = {**self.resolved, "trainer": dict(self.resolved["trainer"])}
        folder = settings["trainer"]["default_root_dir"]
        if as_named(folder) != folder:  # the copy of a store's folder, which is elsewhere on another machine
            del settings["trainer"]["default_root_dir"]
        with atomic_file(path) as beside:
            beside.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")

    def changes(self, path: Path) -> Changes:
        """Return the settings that differ from those in `path`, except for the folder, which may have been moved."""
        before, now = self._settings_in(path), self.resolved
        names = dict.fromkeys((*before, *now))
        changed = changes(dict(flattened(before, names)), dict(flattened(now, names)))
        changed.pop("trainer.default_root_dir", None)
        found = Changes([], [])
        for name, text in changed.items():
            (found.of_sets if _makes_another_set(name) else found.others).append(text)
        return found


def _makes_another_set(name: str) -> bool:
    """Return whether the sets of sub-tasks depend on a setting, by its dotted name."""
    section, _, of_section = name.partition(".")
    if section == "trainer":
        return of_section.partition(".")[0] in _OF_STEPS
    return section in ("seed_everything", "model", "data", "experts") and name not in MAY_CHANGE
