"""`latentdd fit` and `latentdd validate`: LightningCLI over Distiller and DistillationData."""

from collections.abc import Sequence

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from ldd.callbacks import CrossArchitecture, Export, Preview, RecordExperts
from ldd.commands.runs import RunCLI
from ldd.distiller import Distiller


class DistillationCLI(RunCLI):
    """The two Lightning verbs, with sections for experts, evaluation, artefact and pictures."""

    run_files = (
        *RunCLI.run_files,
        "distilled",
        "initial",
        "evaluation.csv",
        "evaluation.json",
        "evaluated",
        "previews",
    )
    seeded = (*RunCLI.seeded, "evaluation.seed")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only what a distiller does."""
        verbs = LightningCLI.subcommands()
        return {verb: verbs[verb] for verb in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Sections `experts`, `evaluation`, `export` and `preview`."""
        parser.add_lightning_class_args(RecordExperts, "experts")
        parser.add_lightning_class_args(CrossArchitecture, "evaluation")
        parser.add_lightning_class_args(Export, "export")
        parser.add_lightning_class_args(Preview, "preview")
        super().add_arguments_to_parser(parser)


def main(verb: str, arguments: Sequence[str]) -> None:
    """Run `fit` or `validate` on the process's own arguments."""
    DistillationCLI(Distiller, "runs/default")
