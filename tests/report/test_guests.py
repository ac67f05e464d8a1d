"""Run folders of somebody else: links out of them, pipes, and values of any kind, in every file that a report reads."""

import base64
import json
import os
import shutil

import pytest
from small_world import SmallData, protocol_file, small_set

from ldd import cli
from ldd.commands.check import check
from ldd.runs.history import record_command
from tests.report.test_runs import make_run

SECRET = b"root:x:0:0 no picture and nobody's business " * 9
READ = ("evaluation.csv", "evaluation.json", "commands.json", "checks/checks.json", "checks/neighbours.png",
        "checks/confusion.png", "logs/version_0/metrics.csv", "distilled/manifest.json", "distilled/images.safetensors",
        "initial/manifest.json")  # fmt: skip
FOLDERS = ("distilled", "initial", "checks", "logs", "logs/version_0")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    run = make_run(
        folder / "run", config={"model": {"objective": {"class_path": "x.Y"}, "prior": {}}, "evaluation": {}}
    )
    small_set(seed=9).save(run / "initial")
    record_command(run, ["fit", "--config", "mine.yaml"])
    check(str(run), SmallData(), protocol=protocol_file(folder, epochs=2))
    return run


@pytest.fixture
def theirs(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "theirs")


def report(run, capsys):
    """Exit code, error and page of a report."""
    out = run.parent / "page.html"
    out.unlink(missing_ok=True)
    code = cli.main(["report", str(run), "--out", str(out)])
    error = capsys.readouterr().err
    assert code in (0, 2)
    assert out.exists() == (code == 0)
    return code, error, out.read_text() if code == 0 else ""


@pytest.mark.parametrize("name", READ)
def test_links_out_of_the_folder_are_not_followed(theirs, capsys, name):
    secret = theirs.parent / "secret"
    secret.write_bytes(SECRET)
    (theirs / name).unlink()
    (theirs / name).symlink_to(secret)
    code, error, page = report(theirs, capsys)
    assert code == 2
    assert "is a link out of its folder: refused" in error
    assert base64.b64encode(SECRET[:30]).decode() not in page + error
    assert SECRET[:20].decode() not in page + error


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_links_are_not_followed(theirs, capsys, name):
    outside = theirs.parent / "outside"
    (theirs / name).rename(outside)
    (theirs / name).symlink_to(outside)
    code, error, _ = report(theirs, capsys)
    assert (code, "is a link out of its folder: refused" in error) == (2, True)


def test_a_link_within_the_folder_is_followed(theirs, capsys):
    (theirs / "logs" / "version_0").rename(theirs / "first")
    (theirs / "logs" / "version_0").symlink_to("../first")
    assert report(theirs, capsys)[0] == 0


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("kind", ["fifo", "folder", "endless", "bytes"])
def test_what_is_no_file_of_ours(theirs, capsys, name, kind):
    """None of it hangs, fills the memory or ends in a traceback; a page that is made leaves it out."""
    path = theirs / name
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "endless":
        with open(path, "wb") as opened:
            opened.truncate(2**42)
    else:
        path.write_bytes(bytes(range(256)))
    code, error, _ = report(theirs, capsys)
    assert code == 0 or theirs.name in error


VALUES = (None, True, -1, 1e308, 2**70, "many", "", [], [[]], {}, {"x": {}}, ["x"] * 3)


def places(value, path=()):
    """Every place in a JSON value, by keys."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(parts)[:4]:
        yield from places(part, (*path, key))


@pytest.mark.parametrize(
    "name", ["evaluation.json", "commands.json", "checks/checks.json", "distilled/manifest.json"]
)
def test_any_value_in_any_place(theirs, capsys, name):
    """Each place once, the value by turns: exit code 0 or 2, never a traceback."""
    content = json.loads((theirs / name).read_text())
    found = list(places(content))
    step = max(1, len(found) // 10)
    for number, path in enumerate(found[::step]):
        changed = json.loads(json.dumps({"": content}))
        node, last = changed, ""
        for key in path:
            node, last = node[last], key
        node[last] = VALUES[number % len(VALUES)]
        (theirs / name).write_text(json.dumps(changed[""]))
        report(theirs, capsys)


CELLS = {
    "accuracy": ["nan", "inf", "-1", "1e308", "x", ""],
    "seconds": ["nan", "1e400"],
    "step": ["-1", "9" * 5000],
    "network": ["$a_b_c$", "[red]x", "\x1b[31m"],
    "protocol": ["=cmd()"],
}


@pytest.mark.parametrize(
    ("column", "value"), [(name, cell) for name, cells in CELLS.items() for cell in cells]
)
def test_any_cell_of_the_evaluation(theirs, capsys, column, value):
    lines = (theirs / "evaluation.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    rows[1][rows[0].index(column)] = value
    (theirs / "evaluation.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    code, _, _ = report(theirs, capsys)
    assert code == 2 or column in ("network", "protocol", "step")
