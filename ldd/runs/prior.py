"""The command line of `latentdd prior train`: one run that trains a prior."""

from lightning.pytorch.cli import LightningArgumentParser

from ldd.prior_training.pictures import SamplePictures
from ldd.runs.command_line import RunCLI
from ldd.runtime.ranks import rank_zero_warn


class PriorTrainingCLI(RunCLI):
    """One run of `PriorTraining`, which writes `<run>/prior`."""

    run_files = (*RunCLI.run_files, "prior", "samples")
    seeded = (*RunCLI.seeded, "samples.seed")
    program = "latentdd prior train"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the section `samples` and `--ckpt_path` (which a subcommand of LightningCLI would have)."""
        parser.add_lightning_class_args(SamplePictures, "samples")
        super().add_arguments_to_parser(parser)
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="Checkpoint to resume, or 'last'."
        )

    def before_instantiate_classes(self) -> None:
        """Drop the licence that a recipe states where the data are not the recipe's."""
        model = self.options.model
        if self._is_of_other_data(model.licence):
            rank_zero_warn(
                f"model.licence ({model.licence}) is about the recipe's own data, and these are other data: the "
                "prior says that the terms of its data apply; state its licence with --model.licence"
            )
            model.licence = None
        super().before_instantiate_classes()

    def _is_of_other_data(self, licence: str | None) -> bool:
        typed = any(word.partition("=")[0] == "--model.licence" for word in self._typed)
        if licence is None or typed:
            return False
        for file in self.options.config or ():
            recipe = self.parser.parse_args(["--config", str(file.absolute)])
            if recipe.model.licence == licence:
                own, chosen = recipe.data, self.options.data
                # A recipe for folders of ImageNet leaves the root open.
                names = ("source", "subset") if own.root is None else ("source", "subset", "root")
                return any(own[name] != chosen[name] for name in names)
        return False
