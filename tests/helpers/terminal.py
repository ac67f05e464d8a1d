"""What a command shows on a pseudo-terminal of some width."""

import atexit
import fcntl
import multiprocessing
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Sequence
from pathlib import Path

from processes import Started

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Screen:
    """What was written, in the order of writing; control sequences are taken out.

    Attributes:
        code: exit code.
        shown: all that was ever on the screen, each state of a bar too.
        lines: the same by line, in which a bar is drawn again at each carriage return.
    """

    def __init__(self, code: int, raw: bytes) -> None:
        self.code = code
        self.shown = _CONTROL.sub("", raw.decode())
        self.lines = [line.rstrip() for line in re.split(r"[\r\n]+", self.shown) if line.strip()]


def on_terminal(width: int, arguments: Sequence[object], folder: Path) -> Screen:
    """Run a verb in a process of its own, whose terminal has `width` columns, with `folder` as working folder."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    parts: list[bytes] = []

    def read() -> None:
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # nobody has the other end any more
                return
            if not part:
                return
            parts.append(part)

    started = Started(
        _verb,
        os.ttyname(slave),
        [str(one) for one in arguments],
        folder,
        environment={"TERM": "xterm-256color"},
    )
    reader = threading.Thread(target=read)
    reader.start()
    try:
        code = started.result()
    finally:
        started.process.kill()
        started.process.join()
        os.close(slave)
        reader.join()
        os.close(master)
    return Screen(code, b"".join(parts))


def _verb(terminal: str, arguments: list[str], folder: Path) -> int:
    from ldd import cli

    device = os.open(terminal, os.O_RDWR | os.O_NOCTTY)
    for descriptor in (0, 1, 2):
        os.dup2(device, descriptor)
    os.environ.pop("COLUMNS", None)
    multiprocessing.current_process()._config["daemon"] = False  # or it may start no workers
    os.chdir(folder)
    sys.argv = ["latentdd"]
    try:
        return cli.main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        atexit._run_exitfuncs()  # as at the end of an ordinary process, where workers clean up
        sys.stdout.flush()
