"""Fresh processes without the seconds that imports take: a fork server imports everything once for all tests."""

import multiprocessing
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ldd.commands.fit", "ldd.experts.recording", "sklearn.datasets"])

Environment = Mapping[str, str]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


def torchrun_variables(ranks: int) -> list[Environment]:
    """What torchrun tells each of `ranks` processes on one machine."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "test"}
    common |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def slurm_variables(ranks: int) -> list[Environment]:
    """What srun tells each of `ranks` tasks on one node, as far as Lightning reads it."""
    common = {"SLURM_NTASKS": str(ranks), "SLURM_JOB_NAME": "test", "SLURM_JOB_ID": "1234"}
    common |= {"SLURM_NODELIST": "127.0.0.1", "SLURM_NTASKS_PER_NODE": str(ranks), "SLURM_NODEID": "0"}
    common |= {"MASTER_PORT": str(free_port())}
    return [{**common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(ranks)]


class Started:
    """A process that runs `function(*arguments)`, and what that returns."""

    def __init__(
        self, function: Callable[..., Any], *arguments: object, environment: Environment | None = None
    ) -> None:
        self._pipe, there = CONTEXT.Pipe(duplex=False)
        self.process = CONTEXT.Process(
            target=_work, args=(there, environment or {}, function, arguments), daemon=True
        )
        self.process.start()
        there.close()

    def send(self, number: int) -> None:
        """A signal."""
        os.kill(self.process.pid, number)

    def result(self, timeout: float = 240) -> Any:
        """What the function returned, None if the process was killed; raises what was raised there."""
        assert wait([self._pipe], timeout), f"no answer within {timeout} s"
        try:
            worked, result = self._pipe.recv()
        except EOFError:
            worked, result = True, None
        self.process.join(timeout)
        assert worked, result
        return result


def run_ranks(
    function: Callable[..., Any], *arguments: object, environments: Sequence[Environment]
) -> list[Any]:
    """What `function(*arguments)` returns in each of several ranks."""
    started = [Started(function, *arguments, environment=variables) for variables in environments]
    try:
        return [one.result() for one in started]
    finally:
        for one in started:
            one.process.kill()


def killed(function: Callable[..., Any], *arguments: object, before: int) -> bool:
    """Run it in a process that kills itself before it renames or links its file number `before` (from 1).

    Returns:
        Whether it came so far.
    """
    started = Started(_kill_at, function, arguments, before)
    started.result()
    return started.process.exitcode == -signal.SIGKILL


class Renames:
    """Counts the files that come to their final names while it is on."""

    def __init__(self, before_each: Callable[[int], None] = lambda number: None) -> None:
        self.count = 0
        self._before_each = before_each
        self._own = {name: getattr(os, name) for name in ("replace", "link")}

    def __enter__(self) -> "Renames":
        for name, original in self._own.items():
            setattr(os, name, self._counted(original))
        return self

    def __exit__(self, *_: object) -> None:
        for name, original in self._own.items():
            setattr(os, name, original)

    def _counted(self, original: Callable[..., None]) -> Callable[..., None]:
        def counted(*arguments: Any, **options: Any) -> None:
            self.count += 1
            self._before_each(self.count)
            original(*arguments, **options)

        return counted


def latentdd(arguments: Sequence[object], log: Path) -> int:
    """The exit code of a command in this process; what it says goes to `log`."""
    from ldd import cli

    with log.open("wb") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.chdir(Path(cli.__file__).parent.parent)
    sys.argv = ["latentdd"]
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def _kill_at(function: Callable[..., Any], arguments: Sequence[object], number: int) -> None:
    def kill(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    with Renames(kill):
        function(*arguments)


def _work(
    pipe: Connection, environment: Environment, function: Callable[..., Any], arguments: Sequence[object]
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        pipe.send((True, function(*arguments)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
