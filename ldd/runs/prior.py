"""The command line of `latentdd prior train`: one run that trains a prior."""

import tempfile
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser

from ldd.disk.parts import parse_part
from ldd.errors import UserError
from ldd.prior_training.module import PriorTraining
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
        about = (
            "Train nothing: encode the K-th of N parts (K/N) of the latents into model.cache_dir, on any machine that "
            "sees it; the last of them joins all. join joins what is there, or names what is missing."
        )
        parser.add_argument("--part", type=str | None, default=None, help=about)

    def before_instantiate_classes(self) -> None:
        """Drop the licence that a recipe states where the data are not the recipe's; let a part write in no run."""
        if self.options.part is not None:
            self._part = parse_part(self.options.part)
            self._thrown_away = tempfile.TemporaryDirectory(prefix="latentdd-part-")
            self.options.trainer.default_root_dir = str(Path(self._thrown_away.name) / "run")
            return
        model = self.options.model
        if self._is_of_other_data(model.licence):
            rank_zero_warn(
                f"model.licence ({model.licence}) is about the recipe's own data, and these are other data: the "
                "prior says that the terms of its data apply; state its licence with --model.licence"
            )
            model.licence = None
        super().before_instantiate_classes()

    def encode_part(self) -> Path | None:
        """Do the part that `--part` names, on the trainer's device; return the file of latents if it is there."""
        model, data = self.model, self.datamodule
        assert isinstance(model, PriorTraining)
        if model.frozen is None:
            raise UserError(
                "part: latents of an autoencoder that is yet to be trained cannot be encoded; leave --part out, or "
                "give a pre-trained one with --model.autoencoder"
            )
        if self.options.model.cache_dir is None:
            raise UserError(
                "model.cache_dir (null) must name a folder that all parts see; or leave --part out"
            )
        model.trainer, self.trainer.datamodule = self.trainer, data  # type: ignore[attr-defined]
        data.setup()
        return model.to(self.trainer.strategy.root_device).encode_part(self._part)

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
