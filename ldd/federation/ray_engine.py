"""Jobs on a Ray cluster that is running, or that is started here for as long as they run."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ldd.errors import UserError
from ldd.federation.jobs import Ended, Job, Machines, Needs
from ldd.runtime.processes import no_orphans

_LOCAL_STORE = 80 * 2**20  # bytes; jobs pass no objects, and Ray asks for at least 75 MiB
_STOPPING = 600  # seconds that jobs have to finish a step and to save it


def run_jobs(
    jobs: Sequence[Job],
    needs: Needs,
    machines: Machines,
    ended: Ended,
) -> None:
    """Run all jobs, some at a time, each in a process of its own on whatever machine has room.

    A job whose process or whose Ray worker is killed (a machine that is lost, memory that runs out) starts again and
    continues from its checkpoint. One that ends by itself with an error is not repeated.

    On a cluster of several machines the jobs' folders must lie on a disk that all of them share. A job that was killed
    once too often ends with 1. An interruption is passed on to the jobs, which save their last step.
    """
    ray = import_ray()
    with no_orphans(), _cluster(ray, machines.address, machines.workers * needs.cpus):
        _check_room(ray, needs)
        remote = ray.remote(
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            max_retries=machines.retries,
            retry_exceptions=[ChildProcessError],
            max_calls=1,  # a worker process for each job, so that nothing is left of the one before
        )(_work())
        waiting, running = list(jobs), dict[Any, Job]()
        try:
            while waiting or running:
                while waiting and len(running) < machines.workers:
                    job = waiting.pop(0)
                    running[_start(remote, job, needs)] = job
                done, _ = ray.wait(list(running), num_returns=1, timeout=1)
                for reference in done:
                    job = running.pop(reference)
                    ended(job.name, _code_of(ray, reference))
        except BaseException:
            for reference in running:
                ray.cancel(reference)
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=_STOPPING)
            raise


def _start(remote: Any, job: Job, needs: Needs) -> Any:  # noqa: ANN401 - Ray's own types
    job.log.parent.mkdir(parents=True, exist_ok=True)
    arguments = (list(job.arguments), str(job.folder), str(job.log), needs.variables)
    return remote.options(name=job.name).remote(*arguments)


def _work() -> Any:  # noqa: ANN401 - a function that Ray sends
    def work(arguments: list[str], folder: str, log: str, environment: dict[str, str]) -> int:
        """Run the command in a process of its own; defined here, so that a worker need not import this package."""
        import os
        import signal
        import subprocess
        import sys

        with open(log, "ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "ldd", *arguments],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
            while True:
                try:
                    code = process.wait(timeout=0.2)  # a cancellation is only seen between two waits
                    break
                except subprocess.TimeoutExpired:
                    continue
                except KeyboardInterrupt:
                    process.send_signal(signal.SIGTERM)
                    process.wait()
                    raise
        if code < 0:
            raise ChildProcessError(f"the process was ended by signal {-code}")
        return code

    return work


def _code_of(ray: Any, reference: Any) -> int:  # noqa: ANN401 - Ray's own types
    try:
        return int(ray.get(reference))
    except ray.exceptions.RayError as error:
        print(f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
        return 1


def import_ray() -> Any:  # noqa: ANN401 - an optional package
    """Return the package.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--workers above 0 needs Ray, which is not installed: pip install 'latentdd[ray]'; or run the jobs one "
            "after the other with --workers 0, or on a SLURM cluster with --engine slurm"
        ) from error
    return ray


@contextmanager
def _cluster(ray: Any, address: str | None, cpus: int) -> Iterator[None]:  # noqa: ANN401 - a module
    if ray.is_initialized():
        yield
        return
    common = {"include_dashboard": False, "logging_level": logging.ERROR, "configure_logging": True}
    if address is None:
        # "local": without it Ray would connect to a cluster of this machine, or to the one at RAY_ADDRESS.
        own = {"address": "local", "num_cpus": cpus, "object_store_memory": _LOCAL_STORE}
    else:
        own = {"address": address}
    try:
        ray.init(**own, **common)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address is None:
            raise UserError(
                f"--workers: Ray cannot be started on this machine ({error}); name a running one with --address, or "
                "run the jobs one after the other with --workers 0"
            ) from error
        raise UserError(f"--address ({address}): no Ray cluster answers there ({error})") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_room(ray: Any, needs: Needs) -> None:  # noqa: ANN401 - a module
    """Raise for a job that no machine could ever take, which would wait for ever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(m.get("CPU", 0) >= needs.cpus and m.get("GPU", 0) >= needs.gpus for m in machines):
        most = max(
            (f"{m.get('CPU', 0):g} cores and {m.get('GPU', 0):g} GPUs" for m in machines), default="none"
        )
        raise UserError(
            f"no machine of the Ray cluster has the {needs.cpus} cores and {needs.gpus} GPUs that a job takes (the "
            f"largest: {most}); lower --cpus_per_job or trainer.devices"
        )
