import os
import time

import pytest
import stores as stand_in
from fsspec import filesystem
from fsspec.implementations.memory import MemoryFile

from ldd.disk import stores
from ldd.disk.locks import writing_in
from ldd.errors import UserError

URL = "noted://bucket/runs/a"


@pytest.fixture(autouse=True)
def _empty(monkeypatch, tmp_path):
    stand_in.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(stores.SECONDS, "1000")  # at the end alone, unless a test sends


def there(root=URL):
    return stand_in.content(filesystem("noted"), root)


def write(folder, **files):
    for name, text in files.items():
        path = os.path.join(folder, *name.split("__"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)


def test_what_is_written_is_in_the_store_at_the_end_and_no_copy_stays(tmp_path):
    with stores.sent():
        folder = stores.opened(URL, "out")
        with writing_in(folder):
            write(folder, a="1", deep__er__b="2")
    assert there() == {"a": b"1", "deep/er/b": b"2"}
    assert not any(path.is_file() for path in (tmp_path / "cache").rglob("*"))


def test_the_next_process_has_what_the_store_has(tmp_path):
    with stores.sent():
        write(stores.opened(URL, "out"), a="1", b="2")
    with stores.sent():
        folder = stores.opened(URL, "out")
        assert sorted(os.listdir(folder)) == ["a", "b"]
        os.remove(f"{folder}/a")
        write(folder, b="other", c="3")
    assert there() == {"b": b"other", "c": b"3"}


def test_only_what_is_new_is_sent():
    with stores.sent():
        write(stores.opened(URL, "out"), a="1", b="2")
    stand_in.NotedFileSystem.done.clear()
    with stores.sent():
        write(stores.opened(URL, "out"), c="3")
    assert stand_in.NotedFileSystem.done == [("put", "/bucket/runs/a/c")]


def test_a_manifest_goes_first_and_comes_last():
    for text in "12":
        stand_in.NotedFileSystem.done.clear()
        with stores.sent():
            folder = stores.opened(URL, "out")
            write(folder, set__manifest_json=text)
            os.replace(f"{folder}/set/manifest_json", f"{folder}/set/manifest.json")
            write(folder, set__images=text, set__codes=text)
    root = "/bucket/runs/a/set"
    assert stand_in.NotedFileSystem.done == [
        ("delete", f"{root}/manifest.json"),
        *(("put", f"{root}/{name}") for name in ("images", "codes", "manifest.json")),
    ]


def test_files_go_in_the_order_in_which_they_were_written():
    with stores.sent():
        folder = stores.opened(URL, "out")
        for moment, name in enumerate("zyx"):
            write(folder, **{name: name})
            os.utime(f"{folder}/{name}", ns=(moment, moment))
    assert [path[-1] for _, path in stand_in.NotedFileSystem.done] == [*"zyx"]


def test_it_is_sent_while_the_verb_works(monkeypatch):
    monkeypatch.setenv(stores.SECONDS, "0.05")
    with stores.sent():
        folder = stores.opened(URL, "out")
        write(folder, a="1")
        for _ in range(400):
            if there():
                break
            time.sleep(0.05)
        assert there() == {"a": b"1"}


def killed(**files):
    """As if a process had ended before it could send its last files."""
    folder = stores.opened(URL, "out")
    write(folder, **files)
    copy = stores._open.pop()
    copy._stop.set()
    copy._thread.join()
    copy._alone.close()
    return copy


def test_a_copy_that_is_ahead_of_the_store_after_a_kill_is_sent():
    with stores.sent():
        write(stores.opened(URL, "out"), a="1", b="1")
    killed(a="2", c="2")
    with stores.sent():
        stores.opened(URL, "out")
    assert there() == {"a": b"2", "b": b"1", "c": b"2"}


def test_where_another_machine_has_gone_on_its_files_count(tmp_path, monkeypatch):
    with stores.sent():
        write(stores.opened(URL, "out"), a="1", b="1")
    killed(a="2", c="2")
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
        with stores.sent():
            folder = stores.opened(URL, "out")
            os.remove(f"{folder}/b")
            write(folder, a="3")
    with stores.sent():
        assert os.listdir(stores.opened(URL, "out")) == ["a"]
    assert there() == {"a": b"3"}


def test_one_process_of_a_machine_writes():
    with stores.sent():
        stores.opened(URL, "out")
        (copy,) = stores._open
        other = stores._Copy(copy.url, copy.place, "out").alone()
        with pytest.raises(UserError, match=r"out \(noted://bucket/runs/a\) is being written by process"):
            other.__enter__()


def write_and_fail(error, *, refuses=True):
    with stores.sent():
        write(stores.opened(URL, "out"), a="1" if not there() else "2")
        stand_in.NotedFileSystem.refuses = refuses
        if error is not None:
            raise error


def test_a_store_that_refuses_keeps_the_copy_and_the_same_command_sends_it():
    with pytest.raises(
        UserError, match=r"(?s)not for you.*; what was made is in .*/a, and the same command sends"
    ):
        write_and_fail(None)
    assert there() == {}
    stand_in.NotedFileSystem.refuses = False
    with stores.sent():
        stores.opened(URL, "out")
    assert there() == {"a": b"1"}


def test_a_block_that_fails_sends_too_and_its_own_error_is_told(capsys):
    with pytest.raises(ZeroDivisionError):
        write_and_fail(ZeroDivisionError(), refuses=False)
    assert there() == {"a": b"1"}
    with pytest.raises(KeyboardInterrupt):
        write_and_fail(KeyboardInterrupt())
    assert "not for you" in capsys.readouterr().err


def test_reading_takes_what_the_store_has_now_and_mends_the_copy():
    with stores.sent():
        write(stores.opened(URL, "out"), a="1", b="2")
    folder = stores.fetched(URL, "path")
    assert sorted(os.listdir(folder)) == ["a", "b"]
    write(folder, a="damaged", c="foreign")
    stores.fetched(URL, "path")
    assert sorted((path.name, path.read_text()) for path in folder.iterdir()) == [("a", "1"), ("b", "2")]
    filesystem("noted").pipe_file("/bucket/runs/a/b", b"new")
    assert (stores.fetched(URL, "path") / "b").read_text() == "new"


def test_a_file_and_its_record_are_sent_under_their_names():
    with stores.sent():
        page = stores.opened("noted://bucket/page.html", "out")
        write(
            os.path.dirname(page),
            **{"page.html": "page", "page.html.commands.json": "[]", ".page.html.lock": ""},
        )
    assert there("noted://bucket") == {"page.html": b"page", "page.html.commands.json": b"[]"}


def test_other_ranks_use_the_copy_of_the_first(monkeypatch):
    with stores.sent():
        first = stores.opened(URL, "out")
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert stores.opened(URL, "out") == first
        assert len(stores._open) == 1


def test_the_first_process_of_another_node_fetches_and_does_not_send(monkeypatch):
    with stores.sent():
        write(stores.opened(URL, "out"), a="1")
    monkeypatch.setenv("NODE_RANK", "1")
    with stores.sent():
        folder = stores.opened(URL, "out")
        assert os.listdir(folder) == ["a"]
        write(folder, b="2")
    assert there() == {"a": b"1"}


def test_paths_in_a_copy_are_named_by_their_url(tmp_path):
    with stores.sent():
        folder = stores.opened(URL, "out")
        assert stores.as_named(folder) == URL
        assert stores.as_named(f"{folder}/x/y.png") == f"{URL}/x/y.png"
        assert stores.as_named(os.path.dirname(folder) + "/beside") == "noted://bucket/runs/beside"
    assert stores.as_named("noted:/bucket/x") == "noted://bucket/x"  # as pathlib leaves it
    assert stores.as_named(tmp_path / "a") == str(tmp_path / "a")


def test_a_file_url_is_the_folder_itself(tmp_path):
    assert stores.opened(f"file://{tmp_path}/x", "out") == f"{tmp_path}/x"
    assert stores.fetched(f"file://{tmp_path}/x", "path") == tmp_path / "x"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("noted://bucket", "must name a folder in a bucket"),
        ("noted://", "must name a folder in a bucket"),
        ("noted://bucket/../x", "must name a folder in a bucket"),
        ("noted://bucket//x", "must name a folder in a bucket"),
        ("ftp://me:secret@host/x", "credentials come from the environment"),
        ("simplecache::noted://bucket/x", "one plain URL"),
        ("unheard-of://bucket/x", "Protocol not known: unheard-of; name a folder on this machine"),
        ("noted://bucket/nothing", "the store has nothing there"),
    ],
)
def test_what_cannot_be_read_is_refused(url, text):
    with pytest.raises(UserError, match=rf"path \({url[:9]}.*{text}"):
        stores.fetched(url, "path")


@pytest.mark.parametrize(
    "name", ["runs/a", "/runs/a", "hf://user/name", "hf:/user/name", "embedded:digits", "a:b", "C"]
)
def test_what_is_no_url(name):
    assert not stores.is_url(name)


@pytest.mark.parametrize("name", ["a/../../../evil", "a//b", "a/./b", "a/..", "a/b\\..\\evil"])
def test_objects_whose_names_lead_elsewhere_are_refused(name):
    system = filesystem("noted")
    for path in ("/bucket/runs/a/fine", f"/bucket/runs/{name}"):
        system.store[path] = system.store.get(path) or MemoryFile(system, path, b"x")
    with pytest.raises(
        UserError, match=r"path \(noted://bucket/runs/a\) holds an object 'a.*, which is no name of a file"
    ):
        stores.fetched(URL, "path")


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf"])
def test_seconds_that_are_none(value, monkeypatch):
    monkeypatch.setenv(stores.SECONDS, value)
    with pytest.raises(
        UserError, match=rf"LATENTDD_STORE_SECONDS \({value}\) must be a number of seconds above 0"
    ):
        stores.opened(URL, "out")
    monkeypatch.setenv(stores.SECONDS, "1")
    with stores.sent():
        stores.opened(URL, "out")  # the lock is free again
