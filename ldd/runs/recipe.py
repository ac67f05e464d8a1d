"""A recipe of `latentdd fit` as other verbs read it: parsed and checked, built part by part, never run."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import Namespace

from ldd.callbacks import CrossArchitecture, RecordExperts
from ldd.data import DistillationData
from ldd.disk.files import atomic_file
from ldd.distiller.module import Distiller
from ldd.runs.command_line import DistillationCLI
from ldd.runs.folder import MAY_CHANGE, changes, flattened
from ldd.runs.options import instantiate

_FOLDER = "trainer.default_root_dir"  # may have been moved

_OF_STEPS = (
    *("max_steps", "min_steps", "max_epochs", "min_epochs", "max_time", "fast_dev_run"),
    *("limit_train_batches", "overfit_batches", "accumulate_grad_batches", "gradient_clip_val"),
    *("gradient_clip_algorithm", "precision", "plugins", "callbacks"),
)
"""Settings of `trainer` that the codes depend on; the others say where and how it runs, and what it shows."""


class Changes(NamedTuple):
    """Settings that differ, as `name: then -> now`.

    Attributes:
        of_sets: those that sub-tasks' sets follow from.
        others: of the evaluation, of where data and models lie, of memory, machines and files.
    """

    of_sets: list[str]
    others: list[str]


class Recipe(DistillationCLI):
    """Options of `latentdd fit`, resolved.

    Args:
        arguments: `--config RECIPE.yaml` and options that go over it.
        folder: default of `trainer.default_root_dir`.

    Raises:
        SystemExit: options that `latentdd fit` would refuse, with its message and code 2.
    """

    program = "latentdd federate"

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        super().__init__(Distiller, str(folder), arguments)

    def before_instantiate_classes(self) -> None:
        """Nothing is run, so no folder is refused."""

    def instantiate_classes(self) -> None:
        """Nothing yet."""

    @cached_property
    def _built(self) -> Namespace:
        return instantiate(self.parser, self.config)

    @property
    def data(self) -> DistillationData:
        """The data, not set up."""
        data: DistillationData = self._built.data
        return data

    @property
    def model(self) -> Distiller:
        """The distiller for all classes of the data."""
        model: Distiller = self._built.model
        return model

    @property
    def evaluation(self) -> CrossArchitecture:
        """How the set is evaluated."""
        evaluation: CrossArchitecture = self._built.evaluation
        return evaluation

    @property
    def experts(self) -> RecordExperts:
        """How missing experts are recorded."""
        experts: RecordExperts = self._built.experts
        return experts

    @property
    def seed(self) -> int:
        """Of the run."""
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
        """Write all settings, for `latentdd fit --config`.

        Raises:
            UserError: the file cannot be written.
        """
        with atomic_file(path) as beside:
            beside.write_text(yaml.safe_dump(self.resolved, sort_keys=False), encoding="utf-8")

    def changes(self, path: Path) -> Changes:
        """Settings that differ from those in `path`.

        Raises:
            UserError: the file is damaged.
        """
        before, now = self._settings_in(path), self.resolved
        names = dict.fromkeys((*before, *now))
        changed = changes(dict(flattened(before, names)), dict(flattened(now, names)))
        changed.pop(_FOLDER, None)
        return Changes(
            [text for name, text in changed.items() if _makes_another_set(name)],
            [text for name, text in changed.items() if not _makes_another_set(name)],
        )


def _makes_another_set(name: str) -> bool:
    """Whether sub-tasks would come out otherwise with another value of a setting, by its dotted name."""
    section, _, of_section = name.partition(".")
    if section == "trainer":
        return of_section.partition(".")[0] in _OF_STEPS
    return section in ("seed_everything", "model", "data", "experts") and name not in MAY_CHANGE
