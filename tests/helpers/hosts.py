"""Hosts of one's own: namespaces of this machine (network, mounts, processes) on a bridge, killed as a whole."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
from small_runs import ROOT

PROGRAMS = ("ip", "unshare", "nsenter", "mount", "setpriv")
PLACES = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"
PORT = 6379

# What a host does first: a /tmp of its own, in which it sees the folder that it shares with others, if there is one.
SETUP = """
set -e
shared=$1
if [ -n "$shared" ]; then mkdir -p /run/shared-$$; mount --bind "$shared" /run/shared-$$; fi
mount -t tmpfs none /tmp
if [ -n "$shared" ]; then mkdir -p "$shared"; mount --move /run/shared-$$ "$shared"; rmdir /run/shared-$$; fi
ip link set lo up
echo ready
exec sleep infinity
"""


def missing() -> str | None:
    """Why no hosts can be made here; None if they can."""
    if not os.environ.get("LDD_RAY_HOSTS"):
        return "a cluster of hosts is made only with LDD_RAY_HOSTS=1: it takes minutes and root"
    if sys.prefix.startswith("/tmp/"):
        return f"hosts have a /tmp of their own, in which they would not see Python ({sys.prefix})"
    absent = [name for name in PROGRAMS if shutil.which(name, path=PLACES) is None]
    if absent:
        return f"not installed (Debian: iproute2, util-linux): {', '.join(absent)}"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True)
    return None if tried.returncode == 0 else f"no namespaces: {tried.stderr.decode().strip()}"


class Host:
    """One host: a process that holds its namespaces."""

    def __init__(self, address: str, shared: Path | None) -> None:
        self.address = address
        namespaces = "unshare --net --mount --pid --fork --mount-proc --kill-child=KILL"
        unshared = f"setpriv --pdeathsig KILL {namespaces}".split()  # ends with the tests, however they end
        self._holder = subprocess.Popen(
            [*unshared, "sh", "-c", SETUP, "host", str(shared or "")],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        (child,) = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        self.init = int(child)

    def command(self, *words: object) -> list[str]:
        """What runs a command on the host."""
        inside = ["nsenter", f"--target={self.init}", "--net", "--mount", "--pid", f"--wd={ROOT}"]
        return [*inside, *map(str, words)]

    def runs(self, *words: str) -> list[psutil.Process]:
        """Processes on the host whose command has some words one after the other."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                here = os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink(f"/proc/{self.init}/ns/net")
                command = process.cmdline()
                if here and any(command[at : at + len(words)] == [*words] for at in range(len(command))):
                    found.append(process)
        return found

    def kill(self) -> None:
        """End all that runs on the host at once, as a loss of its power would."""
        if self._holder.poll() is None:
            os.kill(self.init, signal.SIGKILL)
        self._holder.wait()


class Hosts:
    """Hosts at 10.213.0.1, .2, ...: the first is where the driver runs; killed ones stay gone.

    Args:
        shared: for each host the folder that it sees of this machine's /tmp; None for nothing.
    """

    def __init__(self, shared: Sequence[Path | None]) -> None:
        self._bridge = f"ldd{os.getpid()}"
        self._shared = shared
        self.hosts: list[Host] = []
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Hosts":
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("link", "set", self._bridge, "up")
        try:
            for number, shared in enumerate(self._shared, 1):
                self._add(number, shared)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.kill()
        for process in self._started:
            process.wait()
        _ip("link", "delete", self._bridge)

    def _add(self, number: int, shared: Path | None) -> None:
        host = Host(f"10.213.0.{number}", shared)
        self.hosts.append(host)
        outer, inner = f"{self._bridge}v{number}", f"e{number}"
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", host.init)
        _ip("link", "set", outer, "master", self._bridge, "up")
        for words in (("addr", "add", f"{host.address}/24", "dev", inner), ("link", "set", inner, "up")):
            subprocess.run(host.command("ip", *words), check=True, env={"PATH": PLACES})

    def start(self, number: int, *words: object, **options: object) -> "subprocess.Popen[bytes]":
        """Start a command on a host, the first of which is number 0."""
        process = subprocess.Popen(self.hosts[number].command(*words), **options)
        self._started.append(process)
        return process


def _ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, env={"PATH": PLACES})


class RayHosts(Hosts):
    """A Ray cluster of hosts: on the first one, without cores, its head, and the driver.

    Args:
        shared: as of `Hosts`.
        options: of `ray start` for each host.
    """

    def __init__(self, shared: Sequence[Path | None], options: Sequence[Sequence[object]], log: Path) -> None:
        super().__init__(shared)
        self._options, self._log = options, log
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        waits = {"initial_delay_ms": 1000, "period_ms": 500, "timeout_ms": 2000, "failure_threshold": 4}
        self.environment = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": os.urandom(32).hex(),
            "RAY_USAGE_STATS_ENABLED": "0",
            **{f"RAY_health_check_{name}": str(value) for name, value in waits.items()},
        }
        self.address = f"10.213.0.1:{PORT}"

    def __enter__(self) -> "RayHosts":
        super().__enter__()
        try:
            self._joined(self._ray(0))
            for started in [self._ray(number) for number in range(1, len(self.hosts))]:
                self._joined(started)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _ray(self, number: int) -> tuple["subprocess.Popen[bytes]", Path]:
        role = (
            ("--address", self.address)
            if number
            else ("--head", "--port", PORT, "--include-dashboard", "false")
        )
        at = ("--node-ip-address", self.hosts[number].address, "--object-store-memory", 80 * 2**20)
        words = [Path(sys.executable).parent / "ray", "start", "--block", "--disable-usage-stats", *role, *at]
        log = self._log.with_suffix(f".{number}")
        with log.open("wb") as output:
            options = {"stdout": output, "stderr": subprocess.STDOUT, "env": self.environment}
            return self.start(number, *words, *self._options[number], **options), log

    @staticmethod
    def _joined(started: tuple["subprocess.Popen[bytes]", Path]) -> None:
        process, log = started
        deadline = time.monotonic() + 180
        while b"Ray runtime started" not in (text := log.read_bytes()):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(text.decode())
            time.sleep(0.1)

    def drive(self, *arguments: object, output: Path) -> "subprocess.Popen[bytes]":
        """Start `latentdd` on the first host."""
        words = [sys.executable, "-m", "ldd", *arguments]
        with output.open("ab") as log:
            return self.start(0, *words, stdout=log, stderr=subprocess.STDOUT, env=self.environment)
