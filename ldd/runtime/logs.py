"""What each rank of a run says, in a file of its own: all of them in one folder, each line with who said it."""

import logging
import os
import socket
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ldd.errors import LostRankError, UserError

RANKS = "ranks"
"""Folder of these files in a run's; ranks write in it before the first one knows that the run is new."""


def log_file(folder: Path, rank: int) -> Path:
    """Return the file of a rank."""
    return folder / f"rank-{rank:04d}.log"


@contextmanager
def logged(folder: Path, rank: int, ranks: int, *, anew: bool = False) -> Iterator[None]:
    """Write what is logged and warned of meanwhile, and the error that ends it, to the rank's file too.

    A line is `2026-01-31T12:00:00Z rank 3 of 8 HOST:PID LEVEL: MESSAGE`, in UTC. A later start adds to
    the file; one that is `anew` replaces it, and the first rank then removes those of ranks that there are no more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if anew and rank == 0:
        for path in set(folder.glob("rank-*.log")) - {log_file(folder, each) for each in range(ranks)}:
            path.unlink(missing_ok=True)
    handler = logging.FileHandler(log_file(folder, rank), "w" if anew else "a", encoding="utf-8")
    who = f"rank {rank} of {ranks} {socket.gethostname()}:{os.getpid()}"
    form = logging.Formatter(f"%(asctime)s {who} %(levelname)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    form.converter = time.gmtime
    handler.setFormatter(form)
    # Lightning's loggers hand nothing on to the root's handlers.
    own = [each for each in logging.Logger.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    loggers = [logging.getLogger(), *(each for each in own if not each.propagate)]
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        shown(message, category, filename, lineno, file, line)
        _write(handler, logging.WARNING, f"{category.__name__}: {message}")

    for logger in loggers:
        logger.addHandler(handler)
    warnings.showwarning = show
    try:
        _write(handler, logging.INFO, "starts")
        yield
        _write(handler, logging.INFO, "has ended")
    except BaseException as error:
        known = isinstance(error, (UserError, LostRankError, SystemExit, KeyboardInterrupt))
        _write(
            handler, logging.ERROR, f"{type(error).__name__}: {error}" if known else traceback.format_exc()
        )
        raise
    finally:
        warnings.showwarning = shown
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def _write(handler: logging.Handler, level: int, message: str) -> None:
    handler.emit(logging.LogRecord("ldd", level, __file__, 0, "%s", (message,), None))
