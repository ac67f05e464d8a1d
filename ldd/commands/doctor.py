"""`latentdd doctor`: what this installation has to work with, and what is missing for which feature."""

import json as json_format
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement

from ldd import __version__
from ldd.runs.ending import Ending
from ldd.runs.verb import run_function
from ldd.runtime.devices import available_cores, in_bytes

_FEATURES = {
    "tensorboard": "--trainer.logger TensorBoardLogger",
    "wandb": "--trainer.logger WandbLogger",
    "ray": "latentdd federate --workers",
    "text": "priors of the Stable Diffusion form",
}
"""Extra of the package -> what needs it."""

_CACHES = {
    "scores and plans": ("XDG_CACHE_HOME", "~/.cache", "latentdd"),
    "priors of the hub": ("HF_HOME", "~/.cache/huggingface", "hub"),
    "classifiers of torchvision": ("TORCH_HOME", "~/.cache/torch", "hub"),
}
"""Name -> (variable that moves the folder, its place otherwise, folder in it)."""


def doctor(json: bool = False) -> Ending:
    """Show versions, devices, memory and caches, and what is missing; exit with 1 if a needed package is.

    Args:
        json: print one JSON object instead of lines.
    """
    missing, memory = [*_missing("")], psutil.virtual_memory()
    facts = {
        "latentdd": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__}, built for CUDA {torch.version.cuda or 'no'}",
        "cores": str(available_cores()),
        "memory": f"{in_bytes(memory.available)} free of {in_bytes(memory.total)}",
        **{f"gpu {number}": _gpu(number) for number in range(torch.cuda.device_count())},
        **{f"cache, {name}": _cache(*place) for name, place in _CACHES.items()},
        **{f"for {use}": _extra(extra) for extra, use in _FEATURES.items()},
        "packages": f"missing: {', '.join(missing)}; pip install them" if missing else "all that are needed",
    }
    if json:
        print(json_format.dumps(facts))
    else:
        width = max(map(len, facts)) + 2
        print("\n".join(f"{name:<{width}}{fact}" for name, fact in facts.items()))
    if missing:
        sys.exit(1)
    return Ending(next=() if json else ("fit", "--config", "quickstart"))


def _missing(extra: str) -> Iterator[str]:
    """Requirements of an extra, or of the package itself, that no installed version meets."""
    try:
        wanted = [Requirement(text) for text in requires("latentdd") or ()]
    except PackageNotFoundError:  # a checkout on the path
        return
    for one in wanted:
        if one.marker is not None and not (extra and one.marker.evaluate({"extra": extra})):
            continue
        if extra and one.marker is None:
            continue
        try:
            if not one.specifier.contains(found := version(one.name), prereleases=True):
                yield f"{one.name}{one.specifier} (there is {found})"
        except PackageNotFoundError:
            yield f"{one.name}{one.specifier}"


def _extra(extra: str) -> str:
    missing = [*_missing(extra)]
    return f"missing: {', '.join(missing)}; pip install 'latentdd[{extra}]'" if missing else "there"


def _gpu(number: int) -> str:
    free, total = torch.cuda.mem_get_info(number)
    return f"{torch.cuda.get_device_name(number)}, {in_bytes(free)} free of {in_bytes(total)}"


def _cache(variable: str, default: str, name: str) -> str:
    folder = Path(os.environ.get(variable) or default).expanduser() / name
    if not folder.is_dir():
        return f"{folder}: empty"
    return f"{folder}: {in_bytes(sum(path.lstat().st_size for path in folder.rglob('*') if path.is_file()))}"


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    return run_function(doctor, verb, arguments, path=None)
