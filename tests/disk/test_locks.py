"""One writer at a time: refused at once with who holds the lock, freed by whoever dies, leftovers removed."""

import errno
import fcntl
import os
import signal
import time

import pytest
from processes import Started

from ldd.disk.files import LOCK, holds_files, remove
from ldd.disk.locks import locked, writing, writing_in
from ldd.errors import UserError


def hold(lock, place, ready):
    """In a process of its own, until it is killed."""
    with lock(place):
        ready.touch()
        time.sleep(600)


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds a lock."""
    started = []

    def start(lock, place):
        ready = tmp_path.with_name(f"{tmp_path.name}-{len(started)}")
        started.append(Started(hold, lock, place, ready))
        while not ready.exists():
            time.sleep(0.01)
        return started[-1].process

    yield start
    for one in started:
        one.process.kill()
        one.process.join()


@pytest.mark.parametrize(
    ("lock", "name"), [(writing_in, "run"), (writing, "set"), (writing, "scores.parquet")]
)
def test_the_second_is_refused_until_the_first_dies(holder, tmp_path, lock, name):
    place = tmp_path / name
    process = holder(lock, place)
    started = time.monotonic()
    with (
        pytest.raises(
            UserError, match=rf"out \(.*{name}\) is being written by process {process.pid} on .+ since 2"
        ),
        lock(place),
    ):
        pass
    assert time.monotonic() - started < 1
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (tmp_path / f".{name}.0123abcd.tmp").write_text("of the killed one")
    (tmp_path / ".other.0123abcd.tmp").write_text("of somebody else")
    with lock(place):
        assert (tmp_path / f".{name}.0123abcd.tmp").exists() == (lock is writing_in)
        assert (tmp_path / ".other.0123abcd.tmp").exists()
    assert not list(tmp_path.rglob("*.lock"))


def test_two_spellings_and_links_are_one_place(holder, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    holder(writing, tmp_path / "real" / ".." / "real")
    with pytest.raises(UserError, match="is being written by"), writing(tmp_path / "link"):
        pass


def test_a_folder_in_use_removes_what_killed_writers_left(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for left in (tmp_path / ".x.0123abcd.tmp", tmp_path / "checkpoints" / ".last.ckpt.0123abcd.tmp"):
        left.write_text("half")
    with writing_in(tmp_path):
        assert [path.name for path in tmp_path.rglob("*.*")] == [LOCK]
        assert not holds_files(tmp_path / "checkpoints")


def test_nothing_stays_of_a_folder_that_was_refused(tmp_path):
    with pytest.raises(UserError, match="wrong"), writing_in(tmp_path / "a" / "b"):
        raise UserError("wrong")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_and_a_full_name(tmp_path):
    with writing(tmp_path / "no" / "such"):
        pass
    assert not list(tmp_path.iterdir())
    with writing("/"):
        pass


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_everybody_writes(monkeypatch, tmp_path, error):
    def flock(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    with writing_in(tmp_path), writing_in(tmp_path), locked(tmp_path / "x", print) as alone:
        assert not alone


def test_who_waits_goes_on_when_the_holder_has_ended(holder, tmp_path):
    process, asked = holder(writing_in, tmp_path), []

    def busy(who):
        asked.append(who)
        process.kill()

    with locked(tmp_path / LOCK, busy) as alone:
        assert alone
    assert f"process {process.pid}" in asked[0]


def test_a_link_to_a_folder_is_emptied_and_stays(tmp_path):
    scratch = tmp_path / "scratch"
    (scratch / "inner").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine").touch()
    (scratch / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "checkpoints").symlink_to(scratch)
    remove(tmp_path / "checkpoints")
    assert (tmp_path / "checkpoints").is_symlink()
    assert not list(scratch.iterdir())
    assert (tmp_path / "outside" / "mine").exists()
    broken = tmp_path / "broken"
    broken.symlink_to(tmp_path / "gone")
    remove(broken)
    assert not broken.is_symlink()
