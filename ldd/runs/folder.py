"""Runs that can be started again by the same command."""

from collections.abc import Sequence
from pathlib import Path


def fit_or_resume(arguments: Sequence[str], seed: int, run: Path) -> list[str]:
    """Arguments of `latentdd` for a run in a folder: a new one, or the continuation of one that was stopped there.

    Args:
        arguments: of `latentdd fit`, without seed and folder.
        seed: of the run.
        run: its folder.
    """
    resume = (run / "checkpoints" / "last.ckpt").is_file()
    folder = ("--seed_everything", str(seed), "--trainer.default_root_dir", str(run))
    return ["fit", *arguments, *folder, *(("--ckpt_path", "last") if resume else ("--overwrite", "true"))]
