"""Jobs as files for SLURM: an array of them, the job that follows, and the script that submits both."""

import math
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ldd.disk.files import atomic_file
from ldd.disk.stores import as_named
from ldd.errors import UserError
from ldd.federation.jobs import Job, Needs

_TIME_LEFT = 120  # seconds before its time is up, at which a job is told to save its step


def check_folder(folder: Path) -> None:
    """Raise UserError if the scripts cannot name a folder that all jobs share.

    A newline would end the comment in which sbatch reads it; the copy of a store's folder is this machine's own.
    """
    if (url := as_named(folder)) != str(folder):
        raise UserError(f"--out ({url}): jobs of SLURM share a folder; name one on a disk that all nodes see")
    if re.search(r"[\x00-\x1f\x7f-\x9f]", str(folder)):
        raise UserError(
            f"--out ({str(folder)!r}) has control characters in its path, which the lines for sbatch cannot hold; "
            "choose another folder"
        )


def write_slurm(jobs: Sequence[Job], last: Job, needs: Needs, folder: Path, name: str) -> Path:
    """Write `jobs.sbatch` (one array task a job), `last.sbatch` and `submit.sh`.

    A job that is preempted, or that is told that its time is up, saves its step and is queued again; it then continues
    from its checkpoint. The last job starts once all others have succeeded. Files and logs lie in `folder`, on a disk
    that all machines share. Returns `submit.sh`.
    """
    array = [f"#SBATCH --array=0-{len(jobs) - 1}", f"#SBATCH --output={_quoted(_literal(folder))}/%a.log"]
    commands = "\n".join(
        f"  {index}) set -- {shlex.join(job.arguments)} ;;" for index, job in enumerate(jobs)
    )
    choice = f'case "$SLURM_ARRAY_TASK_ID" in\n{commands}\nesac'
    _write(folder / "jobs.sbatch", _script(name, array, jobs[0].folder, choice, needs))
    output = [f"#SBATCH --output={_quoted(_literal(folder))}/last.log"]
    choice = f"set -- {shlex.join(last.arguments)}"
    _write(folder / "last.sbatch", _script(f"{name}-last", output, last.folder, choice, needs))
    submit = folder / "submit.sh"
    _write(
        submit,
        "#!/usr/bin/env bash\n"
        "# Hands in all jobs; arguments (--partition=..., --time=..., --account=...) go to sbatch.\n"
        "set -euo pipefail\n"
        f"cd {shlex.quote(str(folder))}\n"
        'jobs=$(sbatch --parsable "$@" jobs.sbatch)\n'
        'sbatch --dependency="afterok:${jobs%%;*}" "$@" last.sbatch\n',
    )
    submit.chmod(submit.stat().st_mode | 0o111)
    return submit


def _script(name: str, options: Sequence[str], folder: Path, choice: str, needs: Needs) -> str:
    gpus = [f"#SBATCH --gres=gpu:{needs.gpus}"] if needs.gpus else []
    memory = [] if needs.memory is None else [f"#SBATCH --mem={math.ceil(needs.memory * 1024)}M"]
    exports = [f"export {key}={shlex.quote(value)}" for key, value in needs.variables.items()]
    lines = [
        "#!/usr/bin/env bash",
        f"#SBATCH --job-name={_quoted(name)}",
        "#SBATCH --ntasks=1",
        f"#SBATCH --cpus-per-task={needs.cpus}",
        *gpus,
        *memory,
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        f"#SBATCH --signal=B:USR1@{_TIME_LEFT}",
        *options,
        "set -uo pipefail",
        f"cd {shlex.quote(str(folder))}",
        *exports,
        choice,
        f'{shlex.quote(sys.executable)} -m ldd "$@" &',
        "job=$!",
        "again=",
        "# A signal ends `wait` early; the job then saves its step, which is waited for.",
        "trap 'again=yes; kill -USR1 $job' USR1",
        "trap 'kill -TERM $job' TERM",
        "wait $job; code=$?",
        "while kill -0 $job 2>/dev/null; do wait $job; code=$?; done",
        'if [ -n "$again" ] && [ $code -ne 0 ]; then',
        '  scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"',
        "fi",
        "exit $code",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Return a value of an #SBATCH line, in double quotes."""
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _literal(folder: Path) -> str:
    """Return a folder in the pattern of a log's name, in which `%` starts a replacement."""
    return str(folder).replace("%", "%%")


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as beside:
        beside.write_text(text, encoding="utf-8")
