"""The folder of a run: its last checkpoint, its settings, and the command that continues it."""

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ldd.artefact.manifest import RESUMED, resumptions
from ldd.disk.files import write_json
from ldd.errors import UserError
from ldd.runtime.ranks import rank_zero_warn

MAY_CHANGE = ("data.root", "data.cache_dir", "model.cache_dir", "model.chunk_size", "model.checkpointing")
"""Settings that a resumed run may change: where the data lies, and how memory is used."""

_NOT_NOTED = (
    *MAY_CHANGE,
    *("trainer.default_root_dir", "trainer.enable_progress_bar", "ckpt_path", "weights_only"),
    *("metrics.file", "metrics.every_seconds"),
)

CHECKPOINTS = ("last.ckpt", "previous.ckpt")
"""The newest first. Where a file system has no links, a run that is killed while it saves may have the second alone."""


def fit_or_resume(arguments: Sequence[str], seed: int, run: Path) -> list[str]:
    """Return the arguments of `latentdd` that start a run in a folder, or continue the one that was stopped there."""
    resume = any((run / "checkpoints" / name).is_file() for name in CHECKPOINTS)
    folder = ("--seed_everything", str(seed), "--trainer.default_root_dir", str(run))
    return ["fit", *arguments, *folder, *(("--ckpt_path", "last") if resume else ("--overwrite", "true"))]


def find_last(run: Path) -> Path:
    """Return the newest whole checkpoint of a run folder; a damaged one is passed over, with a warning."""
    damaged: list[str] = []
    for name in CHECKPOINTS:
        path = run / "checkpoints" / name
        if not path.is_file():
            continue
        fault = find_fault(path)
        if fault is None:
            if damaged:
                rank_zero_warn(f"{damaged[0]}; going on from the one before, {path}")
            return path
        damaged.append(f"{path} is damaged ({fault})")
    if damaged:
        raise UserError(
            f"ckpt_path (last): {'; '.join(damaged)}; start the run anew with --overwrite, or restore a checkpoint"
        )
    raise UserError(
        f"ckpt_path (last): no checkpoint in {run / 'checkpoints'}; drop --ckpt_path to start the run"
    )


def find_fault(checkpoint: Path) -> str | None:
    """Return in words why a checkpoint cannot be read; None where every byte is as it was written.

    Nothing in the file is executed: the checksums of its archive are compared, then it is read as plain data.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            changed = archive.testzip()
        if changed is not None:
            return f"its part {changed} has other bytes than were written"
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged archive raises whatever the damaged field leads to
        return (str(error) or repr(error)).partition("\n")[0]
    if not isinstance(content, dict) or not {"state_dict", "loops", "global_step"} <= set(content):
        return "no checkpoint of a run"
    return None


def settings_of(config: Mapping[str, Any]) -> dict[str, object]:
    """Return the settings that the result of a run depends on, by dotted name."""
    flat = flattened(config, ("seed_everything", "model", "data"))
    return {name: value for name, value in flat if name not in MAY_CHANGE}


def changed_on_resume(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the settings that a resumed run has changed, as `name: then -> now`, without places of files."""
    then, new = (dict(flattened(config, {**before, **now})) for config in (before, now))
    # What an earlier version did not have yet has not been changed.
    return [text for name, text in changes(then, new).items() if name in then and name not in _NOT_NOTED]


def note_resumption(run: Path, checkpoint: Path, changed: Sequence[str]) -> None:
    """Record the step from which a run continues, and the settings that were changed."""
    step = int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
    write_json(run / RESUMED, [*resumptions(run), {"step": step, "changes": list(changed)}])


def flattened(config: Mapping[str, Any], sections: Iterable[str]) -> Iterator[tuple[str, object]]:
    """Yield the settings of some sections by dotted name."""
    parts = [(name, config.get(name)) for name in sections]
    while parts:
        name, value = parts.pop()
        if isinstance(value, dict):
            parts += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            yield name, value


def changes(before: Mapping[str, object], now: Mapping[str, object]) -> dict[str, str]:
    """Return the settings that differ, each as `name: then -> now`, by name."""
    return {
        name: f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    }
