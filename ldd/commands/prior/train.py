"""`latentdd prior train`: a class-conditional latent diffusion prior on the user's own data."""

from collections.abc import Sequence
from pathlib import Path

from ldd.disk.public import public_command
from ldd.planning.own_images import FIT
from ldd.prior_training.module import PriorTraining
from ldd.runs.ending import Ending, fit_on, without
from ldd.runs.prior import PriorTrainingCLI


def main(arguments: Sequence[str]) -> Ending:
    """Train, or resume, and write the prior; or encode a part of its latents."""
    cli = PriorTrainingCLI(PriorTraining, "runs/prior", arguments=arguments)
    if cli.options.part is not None:
        made = cli.encode_part()
        return (
            Ending() if made is None else Ending((made,), ("prior", "train", *without("--part", arguments)))
        )
    with cli.held:
        cli.fit(
            model=cli.model, datamodule=cli.datamodule, ckpt_path=cli.options.ckpt_path, weights_only=True
        )
        folder = Path(cli.trainer.default_root_dir) / "prior"
        if cli.trainer.is_global_zero and not cli.options.trainer.fast_dev_run:
            cli.model.save_prior(folder, command=public_command(["prior", "train", *arguments]))
            prior = ("--model.prior", "prior/folder", "--model.prior.path_or_hub_id", folder)
            beside = [Path(str(file)).with_name(FIT) for file in cli.options.config or ()]
            own = [("fit", "--config", file) for file in beside if file.is_file()]
            return Ending((folder,), own[-1] if own else (*fit_on(cli.options.data), *prior))
    return Ending(next=("prior", "train", *without("--trainer.fast_dev_run", arguments)))
