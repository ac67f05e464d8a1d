"""`latentdd configs`: the shipped recipes and components."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from ldd.disk.files import atomic_folder
from ldd.disk.shipped import configs_folder, shipped_names
from ldd.errors import UserError
from ldd.runs.ending import Ending
from ldd.runs.verb import run_function


def configs(copy: str | None = None, schema: str | None = None) -> Ending:
    """List the shipped configuration files, or copy them to a folder, or print a schema for editors.

    Args:
        copy: folder to copy them to, all or none; it must not exist.
        schema: print the JSON schema of one kind of file: recipe (of `latentdd fit`), prior_training, experts, data,
            rediffusion, codes, initializer, labels, objective, prior or pruner. An editor with a YAML language server
            checks and completes a file that begins with the line
            `# yaml-language-server: $schema=recipe.schema.json`.

    Raises:
        UserError: the folder exists, or cannot be written; a kind of file that there is not.
    """
    if schema is not None:
        from ldd.runs.schema import schema_of  # here: the list need not wait for all classes

        print(json.dumps(schema_of(schema), indent=1))
        return Ending()  # what is printed is a file
    if copy is None:
        print(_listed())
        return Ending(next=("fit", "--config", "quickstart"))
    target = Path(copy)
    if target.exists():
        raise UserError(f"--copy ({copy}) exists; name a new folder")
    with atomic_folder(target, durable=False) as beside:
        shutil.copytree(configs_folder(), beside, dirs_exist_ok=True)
    return Ending((target,), ("fit", "--config", target / "quickstart.yaml"))


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


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    return run_function(configs, verb, arguments, path=None)
