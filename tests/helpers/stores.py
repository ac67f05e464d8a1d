"""Object stores for tests: one in memory that notes what is done to it, and S3 as moto serves it."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import lightning as L
from fsspec.implementations.memory import MemoryFileSystem

STEPS = "LATENTDD_TEST_STEPS"


class NotedFileSystem(MemoryFileSystem):
    """`noted://bucket/...`: what was sent and deleted, in order; refuses while `refuses` is set."""

    protocol = "noted"
    store: dict[str, Any] = {}  # noqa: RUF012 - the library's own attribute
    pseudo_dirs = [""]  # noqa: RUF012
    done: list[tuple[str, str]] = []  # noqa: RUF012
    refuses = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("noted://"))

    def put_file(self, lpath: str, rpath: str, *arguments: object, **others: object) -> None:
        if type(self).refuses:
            raise PermissionError("not for you")
        self.done.append(("put", rpath))
        super().put_file(lpath, rpath, *arguments, **others)

    def rm_file(self, path: str) -> None:
        self.done.append(("delete", path))
        super().rm_file(path)


logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's server tells every request
fsspec.register_implementation("noted", NotedFileSystem, clobber=True)


def clear() -> None:
    """Forget everything in the store."""
    for kept in (NotedFileSystem.store, NotedFileSystem.done):
        kept.clear()
    NotedFileSystem.refuses = False


def content(system: Any, root: str) -> dict[str, bytes]:
    """Bytes of all objects below `root`, by name."""
    system.invalidate_cache()
    found = system.find(root)
    start = system._strip_protocol(root)
    return {path.removeprefix(start).lstrip("/"): system.cat_file(path) for path in found}


def s3_variables(endpoint: str) -> dict[str, str]:
    """The variables by which every client finds S3 at an address."""
    variables = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    return {**variables, "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3(bucket: str) -> Iterator[dict[str, str]]:
    """Serve S3 with an empty bucket; yield the variables by which every client finds it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        variables = s3_variables("http://{}:{}".format(*server.get_host_and_port()))
        before = dict(os.environ)
        os.environ.update(variables)
        try:
            fsspec.filesystem("s3").mkdir(bucket)
            yield variables
        finally:
            os.environ.clear()
            os.environ.update(before)
    finally:
        server.stop()


class SlowSteps(L.Callback):
    """Leaves a test time to kill a run between two steps; writes each step that is done to the file `STEPS` names."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        time.sleep(0.3)
        if path := os.environ.get(STEPS):
            with open(path, "a") as file:
                file.write(f"{trainer.global_step}\n")
