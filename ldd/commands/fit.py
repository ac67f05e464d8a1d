"""`latentdd fit` and `latentdd validate`: LightningCLI over Distiller and DistillationData."""

from collections.abc import Sequence

from ldd.distiller.module import Distiller
from ldd.runs.command_line import DistillationCLI


def main(verb: str, arguments: Sequence[str]) -> None:
    """Run `fit` or `validate` on the process's own arguments."""
    DistillationCLI(Distiller, "runs/default")
