"""What is carried between machines that do not share a disk: which files, under which paths."""

import subprocess
from pathlib import Path

import pytest

from ldd.disk.files import atomic_file, atomic_folder
from ldd.errors import UserError
from ldd.federation import ray_worker
from ldd.federation.jobs import Job, Machines, Needs
from ldd.federation.ray_engine import _Jobs


def order(home, **changed):
    facts = {
        "name": "0",
        "attempt": 0,
        "arguments": ("federate", "--out", str(home), "--only", "0"),
        "folder": "/nowhere",
        "home": str(home),
        "token": "t",
        "log": f"{home}/subtasks/0/output.log",
        "results": (f"{home}/subtasks/0", "experts"),
        "environment": {},
    }
    return ray_worker.Order(**{**facts, **changed})


def written(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_whole_files_are_read_without_locks_and_what_the_last_checkpoint_repeats(tmp_path):
    whole = ("a.yaml", "checkpoints/last.ckpt", "distilled/images.safetensors", "b.tmp", ".hidden")
    written(tmp_path, *whole, ".lock", "checkpoints/previous.ckpt", "checkpoints/.lock")
    with atomic_file(tmp_path / "half") as beside, atomic_folder(tmp_path / "part") as folder:
        beside.write_text("half")
        written(folder, "inner")
        found = ray_worker.read_files(tmp_path, "/there/run")
    assert found == {f"/there/run/{name}": name.encode() for name in whole}


def test_a_disk_is_known_by_its_token(tmp_path):
    assert not ray_worker._sees(order(tmp_path))
    (tmp_path / ray_worker.TOKEN).write_text("of an earlier driver, in a copy of the folder")
    assert not ray_worker._sees(order(tmp_path))
    (tmp_path / ray_worker.TOKEN).write_text("t")
    assert ray_worker._sees(order(tmp_path))


def test_files_have_their_places_in_a_copy_and_come_back_under_their_paths(tmp_path):
    """Within the federation's folder, relative to the directory of the jobs, and elsewhere."""
    home, elsewhere = Path("/home/me/runs/out"), tmp_path / "elsewhere"
    copy = ray_worker._Copy(
        order(home, results=(f"{home}/subtasks/0", "experts/a", str(elsewhere))), tmp_path / "scratch"
    )
    files = {
        f"{home}/config.yaml": b"not sent back",
        f"{home}/subtasks/0/checkpoints/last.ckpt": b"1",
        "experts/a/0.safetensors": b"2",
        f"{elsewhere}/x": b"3",
    }
    copy.write(files)
    assert (tmp_path / "scratch" / "out" / "config.yaml").read_bytes() == b"not sent back"
    assert (tmp_path / "scratch" / "experts" / "a" / "0.safetensors").read_bytes() == b"2"
    run = tmp_path / "scratch" / "out" / "subtasks" / "0"
    (run / "config.yaml").write_text(f"default_root_dir: {run}\n")
    back = copy.files()
    assert back.pop(f"{home}/subtasks/0/config.yaml") == f"default_root_dir: {home}/subtasks/0\n".encode()
    assert back == {path: content for path, content in files.items() if content != b"not sent back"}


def test_a_job_of_a_copy_runs_there(tmp_path, monkeypatch):
    """Its checkpoint is left as soon as it is there; its log has what it printed."""
    home, seen = Path("/home/me/runs/out"), []
    copy = ray_worker._Copy(order(home), tmp_path)
    begin = subprocess.Popen

    def popen(words, **options):
        assert words[-4:] == ["--out", str(tmp_path / "out"), "--only", "0"]
        script = "mkdir checkpoints && echo done && touch checkpoints/last.ckpt && sleep 0.7; exit 3"
        run = tmp_path / "out" / "subtasks" / "0"
        return begin(["sh", "-c", script], **{**options, "cwd": run})

    monkeypatch.setattr(subprocess, "Popen", popen)
    assert copy.run(lambda: seen.append([*copy.files()])) == 3
    log, checkpoint = (f"{home}/subtasks/0/{name}" for name in ("output.log", "checkpoints/last.ckpt"))
    assert seen == [[checkpoint, log]]
    assert copy.files()[log] == b"done\n"


class _Ray:
    """No machine is asked."""

    class cloudpickle:
        register_pickle_by_value = staticmethod(lambda module: None)

    @staticmethod
    def remote(**options):
        return lambda function: None


def test_what_came_back_is_written_in_the_places_of_the_job_alone(tmp_path):
    jobs = _Jobs(_Ray(), tmp_path, "t", Needs(), Machines(workers=1), lambda name, code: None)
    job = Job("0", (), tmp_path, tmp_path / "log", (tmp_path / "subtasks" / "0", Path("experts")))
    jobs._write(job, {f"{tmp_path}/subtasks/0/a/b": b"1", "experts/c": b"2"})
    assert (tmp_path / "subtasks" / "0" / "a" / "b").read_bytes() == b"1"
    assert (tmp_path / "experts" / "c").read_bytes() == b"2"
    for path in (f"{tmp_path}/subtasks/1/a", "experts/../a", f"{tmp_path}/subtasks/0/../../a", "/etc/x"):
        with pytest.raises(RuntimeError, match="none of its results"):
            jobs._write(job, {path: b""})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["experts", "subtasks"]


@pytest.mark.parametrize("memory", [0, -1, float("nan"), float("inf")])
def test_memory_of_a_job_is_a_number_of_gib(memory):
    with pytest.raises(UserError, match="--memory_per_job"):
        Machines(memory_per_job=memory, engine="slurm")
    with pytest.raises(UserError, match="needs --workers or --engine slurm"):
        Machines(memory_per_job=1.5)
    assert Machines(memory_per_job=1.5, engine="slurm").needs({"accelerator": "cpu"}).memory == 1.5
