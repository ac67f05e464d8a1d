"""A SLURM of one's own: the real daemons, several nodes on this machine, ended with the test session."""

import getpass
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from processes import free_port
from small_runs import ROOT

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
PLACES = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
"""Debian puts the daemons where only root's PATH looks."""

CONFIGURATION = """\
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
# A requeued job may start again once its credential has expired: 120 seconds by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
# The files ask for the nodes of a cluster; these say that they are such.
SlurmdParameters=config_overrides
SlurmctldTimeout=10
SlurmdTimeout=10
InactiveLimit=0
KillWait=5
MinJobAge=600
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=64 RealMemory=256000 Gres=gpu:8"


def missing() -> str | None:
    """Why no SLURM can be started here; None if one can."""
    absent = [name for name in DAEMONS if shutil.which(name, path=PLACES) is None]
    return f"SLURM is not installed (Debian: slurm-wlm): {', '.join(absent)} not found" if absent else None


class Slurm:
    """Controller and nodes n1, n2, ... whose programs run as the user of the tests.

    Args:
        folder: for state, logs and sockets.
        nodes: their number.

    Raises:
        RuntimeError: if the nodes do not become idle.
    """

    def __init__(self, folder: Path, nodes: int) -> None:
        self.folder, self._names = folder, [f"n{number}" for number in range(1, nodes + 1)]
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{PLACES}",
            "PYTHONPATH": str(ROOT),
        }
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        ports = [free_port() for _ in range(nodes + 1)]
        lines = [NODE.format(name=name, port=port) for name, port in zip(self._names, ports[1:], strict=True)]
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(folder=folder, port=ports[0], user=getpass.getuser(), nodes="\n".join(lines))
        )
        for number in range(8):  # files in the place of devices, which are counted
            (folder / f"gpu{number}").touch()
        (folder / "gres.conf").write_text(f"NodeName=n[1-{nodes}] Name=gpu File={folder}/gpu[0-7]\n")

    def __enter__(self) -> "Slurm":
        try:
            self._begin(self.folder)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _begin(self, at: Path) -> None:
        files = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid"}
        files |= {"seed-file": "munge.seed", "log-file": "munge.log"}
        self._start(
            "munged", "--foreground", "--force", *(f"--{key}={at / name}" for key, name in files.items())
        )
        self.wait_until(lambda: (at / "munge.socket").exists(), "munged listens")
        self._start("slurmctld", "-D", "-c")
        for name in self._names:
            self.start_node(name)
        self.wait_until(
            lambda: self.run("sinfo", "-h", "-o", "%T %D") == f"idle {len(self._names)}", "idle nodes"
        )

    def __exit__(self, *_: object) -> None:
        subprocess.run(
            ["scancel", "--full", "--signal=KILL", "--user", getpass.getuser()], env=self.environment
        )
        for name in reversed(self._daemons):
            self._daemons[name].terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def start_node(self, name: str) -> None:
        """Start a node's daemon."""
        (self.folder / f"spool.{name}").mkdir(exist_ok=True)
        self._start("slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """Kill a node's daemon and all that runs on the node, as a loss of its power would."""
        import psutil

        self._daemons[f"slurmd {name}"].send_signal(signal.SIGKILL)
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURMD_NODENAME") == name:
                    process.kill()
            except psutil.Error:
                continue

    def _start(self, program: str, *arguments: str) -> None:
        name = f"slurmd {arguments[-1]}" if program == "slurmd" else program
        path = shutil.which(program, path=PLACES)
        assert path is not None
        with (self.folder / f"{name}.said").open("ab") as said:
            self._daemons[name] = subprocess.Popen(
                [path, *arguments], env=self.environment, stdout=said, stderr=said, start_new_session=True
            )

    def run(self, *command: str | Path, folder: Path | None = None) -> str:
        """What a command says, in `folder`; AssertionError with what it said if it fails."""
        done = subprocess.run(command, env=self.environment, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script: Path, *arguments: object, folder: Path, options: Sequence[str] = ()) -> str:
        """The number of a job that `sbatch` was given in `folder`."""
        (folder / "logs").mkdir(exist_ok=True)
        return self.run("sbatch", "--parsable", *options, script, *map(str, arguments), folder=folder)

    def facts(self, job: str) -> dict[str, str]:
        """What SLURM says of a job: JobState, Restarts, NodeList, ExitCode, ..."""
        words = self.run("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job: str, state: str) -> dict[str, str]:
        """Its facts, once a job is in a state; AssertionError once it can no longer come there."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"}

        def there() -> bool:
            found = self.facts(job)
            assert found["JobState"] not in ended - {state}, found
            return found["JobState"] == state

        self.wait_until(there, f"job {job} is {state}")
        return self.facts(job)

    def wait_until(self, happened: Callable[[], object], what: str, seconds: float = 240) -> None:
        """Look five times a second whether something has happened."""
        end = time.monotonic() + seconds
        while not happened():
            if time.monotonic() > end:
                said = {
                    path.name: path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log")
                }
                raise RuntimeError(f"not within {seconds} s: {what}; {said}")
            time.sleep(0.2)
