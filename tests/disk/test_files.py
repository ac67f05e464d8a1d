"""Writing: whole or not at all, with ordinary permissions, and every failure a clear message."""

import errno
import json
import os
import resource
import stat
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from ldd.disk import files
from ldd.disk.files import (
    atomic_file,
    atomic_folder,
    holds_files,
    read_tensors,
    sha256,
    write_json,
    write_tensors,
)
from ldd.errors import NonFiniteError, UserError


@contextmanager
def file_size_limit(size):
    """Writes beyond `size` bytes fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def umask():
    """Group may read, others nothing."""
    old = os.umask(0o027)
    yield 0o640
    os.umask(old)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def half_write(path, error):
    path.write_text("half")
    raise error


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class TestFile:
    def test_writes_into_new_folders_and_replaces(self, tmp_path):
        path = tmp_path / "a" / "b" / "x.txt"
        for text in ("one", "two"):
            with atomic_file(path) as beside:
                assert beside.parent == path.parent
                beside.write_text(text)
            assert path.read_text() == text
        assert names(path.parent) == ["x.txt"]

    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, NonFiniteError])
    def test_failure_leaves_the_old_file_and_nothing_else(self, tmp_path, error):
        path = tmp_path / "x.txt"
        path.write_text("old")
        with pytest.raises(error), atomic_file(path) as beside:
            half_write(beside, error)
        assert names(tmp_path) == ["x.txt"]
        assert path.read_text() == "old"

    def test_full_disk(self, tmp_path):
        path = tmp_path / "x.txt"
        with (
            pytest.raises(
                UserError, match=r"cannot write .*x\.txt: No space left on device; free some space"
            ),
            atomic_file(path),
        ):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        assert names(tmp_path) == []

    @pytest.mark.parametrize(
        "write",
        [
            lambda path: path.write_bytes(bytes(100_000)),
            lambda path: save_file({"a": torch.zeros(100_000)}, path),
            lambda path: torch.save({"a": torch.zeros(100_000)}, path),
        ],
        ids=["bytes", "safetensors", "torch"],
    )
    def test_writes_that_fail_for_real(self, tmp_path, write):
        path = tmp_path / "x.bin"
        path.write_bytes(b"old")
        with (
            pytest.raises(UserError, match=r"cannot write .*x\.bin: .*[Ff]ile too large"),
            file_size_limit(10_000),
            atomic_file(path) as beside,
        ):
            write(beside)
        assert names(tmp_path) == ["x.bin"]
        assert path.read_bytes() == b"old"

    def test_other_runtime_errors_pass(self, tmp_path):
        with pytest.raises(RuntimeError, match="shapes differ"), atomic_file(tmp_path / "x"):
            raise RuntimeError("shapes differ")

    def test_permissions_are_those_of_any_new_file(self, tmp_path, umask):
        path = tmp_path / "x.safetensors"
        with atomic_file(path) as beside:
            save_file({"a": torch.zeros(1)}, beside)  # leaves 0600 by itself
        assert mode(path) == umask

    def test_read_only_file_is_kept(self, tmp_path):
        path = tmp_path / "x.txt"
        path.write_text("old")
        path.chmod(0o444)
        with pytest.raises(UserError, match=r"x\.txt: it is read-only; chmod u\+w"), atomic_file(path):
            pytest.fail("the block must not run")
        assert path.read_text() == "old"

    def test_folder_or_pipe_in_the_place(self, tmp_path):
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        for name in ("folder", "pipe"):
            with pytest.raises(UserError, match=f"{name}: it exists and is not a regular file"):
                write_json(tmp_path / name, 1)
        assert names(tmp_path) == ["folder", "pipe"]

    def test_parent_is_a_file(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"cannot write .*file/x: .*; choose a path in a writable folder"):
            write_json(tmp_path / "file" / "x", 1)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_read_only_folder(self, tmp_path):
        tmp_path.chmod(0o555)
        with pytest.raises(
            UserError, match=r"cannot write .*x: Permission denied; choose a path in a writable"
        ):
            write_json(tmp_path / "x", 1)

    def test_link_is_followed_and_kept(self, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "disk" / "x.json")
        write_json(tmp_path / "link", 1)
        assert (tmp_path / "link").is_symlink()
        assert names(tmp_path / "disk") == ["x.json"]
        assert json.loads((tmp_path / "disk" / "x.json").read_text()) == 1

    def test_on_disk_before_the_rename(self, tmp_path, monkeypatch):
        calls = []
        for name in ("fsync", "replace"):
            real = getattr(os, name)
            monkeypatch.setattr(os, name, lambda *a, name=name, real=real: (calls.append(name), real(*a))[1])
        write_json(tmp_path / "x.json", 1)
        assert calls == ["fsync", "replace", "fsync"]


class TestFolder:
    def write(self, path, text, extra=()):
        with atomic_folder(path) as beside:
            for name in ("x", *extra):
                (beside / name).write_text(text)

    def test_replaces_as_a_whole(self, tmp_path):
        path = tmp_path / "a" / "set"
        self.write(path, "one", extra=["y"])
        self.write(path, "two")
        assert names(path) == ["x"]
        assert (path / "x").read_text() == "two"
        assert names(path.parent) == ["set"]

    @pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
    def test_failure_leaves_the_old_folder_and_nothing_else(self, tmp_path, error):
        self.write(tmp_path / "set", "old")
        with pytest.raises(error), atomic_folder(tmp_path / "set") as beside:
            half_write(beside / "x", error)
        assert names(tmp_path) == ["set"]
        assert (tmp_path / "set" / "x").read_text() == "old"

    def test_failed_rename_puts_the_old_folder_back(self, tmp_path, monkeypatch):
        self.write(tmp_path / "set", "old")
        real, calls = os.replace, []

        def second_fails(source, target):
            calls.append(target)
            if len(calls) == 2:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(source, target)

        monkeypatch.setattr(os, "replace", second_fails)
        with pytest.raises(UserError, match=r"cannot write .*set: Input/output error"):
            self.write(tmp_path / "set", "new")
        assert len(calls) == 3
        assert names(tmp_path) == ["set"]
        assert (tmp_path / "set" / "x").read_text() == "old"

    def test_inner_failure_names_the_folder_the_user_knows(self, tmp_path):
        with (
            pytest.raises(
                UserError, match=f"cannot write {tmp_path}/set/x.safetensors: .*too large"
            ) as caught,
            file_size_limit(10_000),
            atomic_folder(tmp_path / "set") as beside,
        ):
            write_tensors(beside / "x.safetensors", {"a": torch.zeros(100_000)})
        assert ".tmp" not in str(caught.value)
        assert names(tmp_path) == []

    def test_permissions(self, tmp_path, umask):
        with atomic_folder(tmp_path / "set") as beside:
            (beside / "deep").mkdir()
            save_file({"a": torch.zeros(1)}, beside / "deep" / "x.safetensors")
        assert mode(tmp_path / "set") == mode(tmp_path / "set" / "deep") == umask | 0o110
        assert mode(tmp_path / "set" / "deep" / "x.safetensors") == umask

    def test_file_in_the_place(self, tmp_path):
        (tmp_path / "set").write_text("old")
        with pytest.raises(UserError, match="set: it exists and is not a folder; name another path"):
            self.write(tmp_path / "set", "new")
        assert names(tmp_path) == ["set"]

    def test_link_is_followed_and_kept(self, tmp_path):
        self.write(tmp_path / "disk" / "set", "old")
        (tmp_path / "link").symlink_to(tmp_path / "disk" / "set")
        self.write(tmp_path / "link", "new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk" / "set" / "x").read_text() == "new"
        assert names(tmp_path / "disk") == ["set"]
        assert names(tmp_path) == ["disk", "link"]

    def test_holds_files(self, tmp_path, monkeypatch):
        (tmp_path / "empty").mkdir()
        assert not holds_files(tmp_path / "empty")
        assert not holds_files(tmp_path / "missing")
        assert holds_files(tmp_path)

        def denied(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        monkeypatch.setattr(files.os, "listdir", denied)
        with pytest.raises(UserError, match=r"cannot read .*: Permission denied"):
            holds_files(tmp_path)


class TestContents:
    def test_json(self, tmp_path):
        write_json(tmp_path / "x.json", {"name": "Käfer 🐞", "values": [1, 2.5, None]})
        assert json.loads((tmp_path / "x.json").read_text()) == {"name": "Käfer 🐞", "values": [1, 2.5, None]}

    def test_tensors_round_trip(self, tmp_path):
        base = torch.arange(24.0).view(2, 3, 4)
        # Shared memory, not contiguous, with a graph, half precision, empty.
        tensors = {
            "row": base[0],
            "turned": base.permute(2, 0, 1),
            "graph": base[1].clone().requires_grad_() * 2,
            "half": base.bfloat16(),
            "none": torch.zeros(0, 3),
        }
        write_tensors(tmp_path / "x", tensors)
        read = read_tensors(tmp_path / "x")
        assert set(read) == set(tensors)
        for name, tensor in tensors.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name], tensor)

    def test_same_tensors_same_bytes(self, tmp_path):
        for name in ("x", "y"):
            write_tensors(tmp_path / name, {"b": torch.ones(3), "a": torch.arange(5)})
        assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
        assert sha256(tmp_path / "x") == sha256(tmp_path / "y")

    def test_read_tensors_own_their_memory(self, tmp_path):
        write_tensors(tmp_path / "x", {"a": torch.arange(5)})
        read = read_tensors(tmp_path / "x")
        with open(tmp_path / "x", "r+b") as file:
            file.seek(-40, os.SEEK_END)
            file.write(bytes(40))
        assert read["a"].tolist() == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("content", [b"", b"no tensors", bytes(100), b"\xff" * 100], ids=repr)
    def test_no_tensors(self, tmp_path, content):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(UserError, match=r"x is truncated or no safetensors file .*; copy it again"):
            read_tensors(tmp_path / "x")

    def test_truncated_anywhere(self, tmp_path):
        write_tensors(tmp_path / "x", {"a": torch.arange(5), "b": torch.zeros(2, 2)})
        whole = (tmp_path / "x").read_bytes()
        for length in range(len(whole)):
            (tmp_path / "x").write_bytes(whole[:length])
            with pytest.raises(UserError, match="x is truncated"):
                read_tensors(tmp_path / "x")

    def test_missing(self, tmp_path):
        for path in (tmp_path / "x", tmp_path):
            with pytest.raises(UserError, match="does not exist or is not a file; check the path"):
                read_tensors(path)
