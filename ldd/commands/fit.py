"""`latentdd fit` and `latentdd validate`: LightningCLI over Distiller and DistillationData."""

from ldd.runs.command_line import fit_or_validate as main

__all__ = ["main"]
