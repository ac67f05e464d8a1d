"""`latentdd configs`: the shipped recipes and components."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import ldd
from ldd.disk.files import atomic_folder
from ldd.errors import UserError
from ldd.runs.verb import run_function


def configs(copy: str | None = None) -> None:
    """List the shipped configuration files, or copy them to a folder.

    Args:
        copy: folder to copy them to, all or none; it must not exist.

    Raises:
        UserError: it exists, or cannot be written.
    """
    root = configs_folder()
    if copy is None:
        print("\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*.yaml"))))
        return
    target = Path(copy)
    if target.exists():
        raise UserError(f"--copy ({copy}) exists; name a new folder")
    with atomic_folder(target, durable=False) as beside:
        shutil.copytree(root, beside, dirs_exist_ok=True)
    print(f"copied to {target}")


def configs_folder() -> Path:
    """Where the shipped configs are: inside an installed package, beside it in a checkout."""
    package = Path(ldd.__file__).parent
    return next(path for path in (package / "configs", package.parent / "configs") if path.is_dir())


def main(verb: str, arguments: Sequence[str]) -> None:
    """Run the verb."""
    run_function(configs, verb, arguments, path=False)
