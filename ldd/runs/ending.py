"""The last words of a verb: what it made, and the command that usually follows, ready to be copied."""

from pathlib import Path
from shlex import join

from ldd.runtime.ranks import rank_zero_only

_MADE = ("distilled", "evaluation.csv", "evaluation.json", "previews")


def tell_next(*words: object) -> None:
    """Print the command of these words."""
    print(f"next: latentdd {join(map(str, words))}", flush=True)


def tell_the_end(run: Path | str) -> None:
    """Print what a run has made, and how a page is made of it."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        return
    made = [str(Path(run) / name) for name in _MADE if (Path(run) / name).exists()]
    print(f"made: {', '.join(made)}")
    tell_next("report", run, "--out", Path(run) / "report.html")


def tell_to_evaluate(path: str, *options: str) -> None:
    """Print how the set in a folder is evaluated."""
    out = Path(path).with_name(f"{Path(path).stem}_evaluation")
    tell_next("evaluate", path, "--data", "DATA.yaml", *options, "--out", out)
