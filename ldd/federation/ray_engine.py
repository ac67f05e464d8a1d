"""Jobs on a Ray cluster that is running, or that is started here for as long as they run."""

import logging
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten
from typing import Any

from ldd.disk.files import atomic_file
from ldd.errors import UserError
from ldd.federation import ray_worker
from ldd.federation.jobs import DONE, Ended, Job, Machines, Needs
from ldd.runtime.processes import no_orphans

_LOCAL_STORE = 80 * 2**20  # bytes; jobs on this machine pass no objects, and Ray asks for at least 75 MiB
_STOPPING = 600  # seconds that jobs have to finish a step and to save it
_GIB = 2**30


def run_jobs(home: Path, jobs: Sequence[Job], needs: Needs, machines: Machines, ended: Ended) -> None:
    """Run all jobs, some at a time, each in a process of its own on whatever machine has room.

    A job whose process or whose machine is lost (killed, out of memory) starts again elsewhere and continues from its
    checkpoint; a job that was lost once too often ends with 1. One that ends by itself with an error is not repeated.

    A machine that sees the disk of `home` works there. Any other gets a job's files through Ray's object store, works
    on its own disk, and sends back what the job has at each checkpoint and at its end; it is written here.

    An interruption is passed on to the jobs, which save their last step.

    Args:
        home: the federation's folder.
        jobs: those to run.
        needs: of each job.
        machines: the cluster, and how many jobs run at a time.
        ended: called after each job.
    """
    ray = import_ray()
    with no_orphans(), _cluster(ray, machines.address, machines.workers * needs.cpus), _token(home) as token:
        _check_room(ray, needs)
        _Jobs(ray, home, token, needs, machines, ended).run(jobs)


class _Jobs:
    """Jobs that wait, and those that run."""

    def __init__(
        self,
        ray: Any,  # noqa: ANN401 - a module
        home: Path,
        token: str,
        needs: Needs,
        machines: Machines,
        ended: Ended,
    ) -> None:
        self._ray, self._home, self._token = ray, home, token
        self._needs, self._machines, self._ended = needs, machines, ended
        ray.cloudpickle.register_pickle_by_value(ray_worker)  # a machine's Ray need not import this package
        memory = {} if needs.memory is None else {"memory": int(needs.memory * _GIB)}
        self._remote = ray.remote(
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            max_retries=0,  # done here, from the newest checkpoint
            max_calls=1,  # a worker process for each job, so that nothing is left of the one before
            **memory,
        )(ray_worker.work)
        self._running: dict[Any, tuple[Job, int]] = {}
        self._desk: Any = None  # once a machine is met that does not see the disk

    def run(self, jobs: Sequence[Job]) -> None:
        waiting = list(jobs)
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self._machines.workers:
                    self._start(waiting.pop(0))
                done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=1)
                self._take()
                for reference in done:
                    self._end(reference)
        except BaseException:
            for reference in self._running:
                self._ray.cancel(reference)
            if self._running:
                self._ray.wait(list(self._running), num_returns=len(self._running), timeout=_STOPPING)
                self._take()
            raise

    def _start(self, job: Job, attempt: int = 0) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        order = ray_worker.Order(
            *(job.name, attempt, job.arguments, str(job.folder), str(self._home), self._token, str(job.log)),
            results=tuple(map(str, job.results)),
            environment=self._needs.variables,
        )
        given = [] if self._desk is None else [self._ray.put(self._files_for(job))]
        reference = self._remote.options(name=job.name).remote(order, given, self._desk)
        self._running[reference] = (job, attempt)

    def _files_for(self, job: Job) -> ray_worker.Files:
        """Return what a job starts from: the files of the plan, and what is there of its results."""
        plan = (*self._home.glob("*.json"), *self._home.glob("*.yaml"))
        files = {str(path): path.read_bytes() for path in plan}
        for result in job.results:
            files |= ray_worker.read_files(job.folder / result, str(result))
        return files

    def _end(self, reference: Any) -> None:  # noqa: ANN401 - Ray's own types
        job, attempt = self._running.pop(reference)
        try:
            code, machine, files = self._ray.get(reference)
        except (ChildProcessError, self._ray.exceptions.RayError) as error:
            self._lost(job, attempt, error)
            return
        if code is None:
            if self._desk is None:
                self._desk = self._open_desk()
            self._start(job, attempt)
            return
        if files is not None:
            self._write(job, files)
            size = sum(map(len, files.values())) / 2**20
            print(f"job {job.name}: {len(files)} files ({size:.1f} MiB) came back from {machine}")
        self._ended(job.name, code)

    def _lost(self, job: Job, attempt: int, error: Exception) -> None:
        """Start a job again whose process or machine is gone; end it where that does not help."""
        raised = isinstance(error, self._ray.exceptions.RayTaskError)  # there, under a traceback
        line = str(error).strip().splitlines()[-1 if raised else 0]
        text = shorten(f"{type(error).__name__}: {line}", 160, placeholder=" ...")
        own = raised and not isinstance(error, ChildProcessError)
        if own or attempt == self._machines.retries:
            print(f"job {job.name}: {text}", file=sys.stderr)
            self._ended(job.name, 1)
            return
        print(
            f"job {job.name} was lost ({text}); it starts again ({attempt + 1} of {self._machines.retries})"
        )
        self._start(job, attempt + 1)

    def _open_desk(self) -> Any:  # noqa: ANN401 - Ray's own types
        """Return a desk, for whose place on this machine is best."""
        here = self._ray.get_runtime_context().get_node_id()
        place = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=True)
        options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": place}
        return self._ray.remote(**options)(ray_worker.Desk).remote()

    def _take(self) -> None:
        """Write what running jobs have left by now."""
        if self._desk is None:
            return
        with suppress(self._ray.exceptions.RayError):
            left = self._ray.get(self._desk.take.remote())
            for job, attempt in [*self._running.values()]:
                self._write(job, left.get((job.name, attempt), {}))

    def _write(self, job: Job, files: ray_worker.Files) -> None:
        """Write files that came from another machine, and last of all the one that says that the job is done."""
        for path in sorted(files, key=lambda path: path.endswith(f"/{DONE}")):
            place = Path(os.path.normpath(job.folder / path))
            if not any(place.is_relative_to(job.folder / result) for result in job.results):
                raise RuntimeError(f"job {job.name} sent {path}, which is none of its results")
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(place) as beside:
                beside.write_bytes(files[path])


@contextmanager
def _token(home: Path) -> Iterator[str]:
    """Leave a file in a folder, by which machines that see the folder are told from those that do not."""
    token = secrets.token_hex(16)
    file = home / ray_worker.TOKEN
    with atomic_file(file) as beside:
        beside.write_text(token)
    try:
        yield token
    finally:
        file.unlink(missing_ok=True)


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
    asked = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": (needs.memory or 0) * _GIB}
    if not any(all(has.get(name, 0) >= least for name, least in asked.items()) for has in machines):
        raise UserError(
            f"no machine of the Ray cluster has the {_in_words(asked)} that a job takes (the machines: "
            f"{'; '.join(sorted(map(_in_words, machines))) or 'none'}); lower --cpus_per_job, --memory_per_job or "
            "trainer.devices"
        )


def _in_words(room: Mapping[str, float]) -> str:
    """Return "2 cores, 1 GPUs and 8 GiB"."""
    memory = room.get("memory", 0) / _GIB
    return f"{room.get('CPU', 0):g} cores, {room.get('GPU', 0):g} GPUs and {memory:.1f} GiB"
