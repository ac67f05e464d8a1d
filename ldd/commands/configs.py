"""`latentdd configs`: the shipped recipes and components."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ldd.disk.files import atomic_folder
from ldd.disk.shipped import configs_folder, shipped_names
from ldd.errors import UserError
from ldd.runs.verb import run_function


def configs(copy: str | None = None) -> None:
    """List the shipped configuration files, or copy them to a folder.

    Args:
        copy: folder to copy them to, all or none; it must not exist.

    Raises:
        UserError: it exists, or cannot be written.
    """
    if copy is None:
        print(_listed())
        return
    target = Path(copy)
    if target.exists():
        raise UserError(f"--copy ({copy}) exists; name a new folder")
    with atomic_folder(target, durable=False) as beside:
        shutil.copytree(configs_folder(), beside, dirs_exist_ok=True)
    print(f"copied to {target}")


def _listed() -> str:
    """Return the names by section, each with what the first comment of its file says."""
    lines = []
    for name in sorted(shipped_names(), key=lambda name: ("/" in name, name)):
        text = (configs_folder() / f"{name}.yaml").read_text(encoding="utf-8")
        comments = [line[1:].strip() for line in text.splitlines() if line.startswith("#")]
        first = next((line for line in comments if not line.startswith(("latentdd ", "--"))), "")
        lines.append(f"{name:<38}{first}")
    return "\n".join(
        (
            *lines,
            "",
            "latentdd fit --config NAME takes a recipe from anywhere; so does every option a component.",
        )
    )


def main(verb: str, arguments: Sequence[str]) -> None:
    """Run the verb."""
    run_function(configs, verb, arguments, path=None)
