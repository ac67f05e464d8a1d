"""Fresh processes without the seconds that imports take: a fork server imports everything once for all tests."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ldd.distiller", "ldd.callbacks", "ldd.experts", "sklearn.datasets"])

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
    """What srun tells each of `ranks` tasks on one node (the ones Lightning reads)."""
    common = {"SLURM_NTASKS": str(ranks), "SLURM_JOB_NAME": "test", "SLURM_JOB_ID": str(free_port())}
    common |= {"SLURM_NODELIST": "127.0.0.1", "SLURM_NTASKS_PER_NODE": str(ranks), "SLURM_NODEID": "0"}
    return [{**common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(ranks)]


def start(function: Callable[..., Any], *arguments: object, environment: Environment = {}) -> "Started":  # noqa: B006
    """Run `function(*arguments)` in a process of its own."""
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_work, args=(there, environment, function, arguments), daemon=True)
    process.start()
    there.close()
    return Started(process, here)


class Started:
    """A process and what it will return."""

    def __init__(self, process: multiprocessing.Process, pipe: Connection) -> None:
        self.process = process
        self.pipe = pipe

    def result(self, timeout: float = 120) -> Any:
        """What the function returned; an AssertionError with its traceback if it raised, None if it was killed."""
        assert wait([self.pipe], timeout), f"no answer within {timeout} s"
        try:
            worked, result = self.pipe.recv()
        except EOFError:
            worked, result = True, None
        self.process.join(timeout)
        assert worked, result
        return result


def run_ranks(
    function: Callable[..., Any],
    *arguments: object,
    environments: Sequence[Environment],
    timeout: float = 120,
) -> list[Any]:
    """What `function(*arguments)` returns in each of several ranks."""
    started = [start(function, *arguments, environment=variables) for variables in environments]
    try:
        return [one.result(timeout) for one in started]
    finally:
        for one in started:
            one.process.kill()


def _work(
    pipe: Connection, environment: Environment, function: Callable[..., Any], arguments: Sequence[object]
):
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        pipe.send((True, function(*arguments)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
