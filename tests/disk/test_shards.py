"""Shards: what is finished outlives whatever happens, and nothing else does."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ldd.disk.shards import Shards
from ldd.errors import UserError

PIECES = [bytes([number]) * (10 + number) for number in range(5)]
WHOLE = b"".join(PIECES)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(target, key="k", until=None, **arguments):
    """Add the pieces that are missing; how many were made."""
    with Shards(target, key, **arguments) as shards:
        missing = range(len(shards.facts), len(PIECES))
        for number in missing:
            if number == until:
                raise KeyboardInterrupt
            shards.add([PIECES[number][:3], memoryview(PIECES[number][3:])], {"number": number})
        assert [shards.read(number) for number in range(len(PIECES))] == PIECES
        assert shards.facts == [{"number": number} for number in range(len(PIECES))]
        shards.finish()
    return len(missing)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "x.bin"


def stopped(target, **arguments):
    with pytest.raises(KeyboardInterrupt):
        fill(target, **arguments)


def test_a_stopped_process_is_gone_on_with(target):
    stopped(target, until=3)
    assert not target.exists()
    assert fill(target) == 2
    assert target.read_bytes() == WHOLE
    assert names(target.parent) == ["x.bin"]


@pytest.mark.parametrize(
    "damage", ["half a shard", "half a line", "lost bytes", "another key", "no journal", "no JSON"]
)
def test_only_whole_shards_of_the_same_key_count(target, damage):
    stopped(target, until=3)
    data, journal = target.with_name(".x.bin.shards.tmp"), target.with_name(".x.bin.shards.jsonl")
    left = 2
    if damage == "half a shard":
        data.write_bytes(data.read_bytes() + b"xxx")
    elif damage == "half a line":
        journal.write_text(journal.read_text() + "[46, {")
    elif damage == "lost bytes":  # a power cut
        data.write_bytes(data.read_bytes()[:-1])
        left = 3
    elif damage == "another key":
        left = 5
    elif damage == "no journal":
        journal.unlink()
        left = 5
    else:
        journal.write_text("{}\n")
        left = 5
    assert fill(target, "other" if damage == "another key" else "k") == left
    assert target.read_bytes() == WHOLE
    assert names(target.parent) == ["x.bin"]


def test_a_process_killed_between_the_file_and_its_index_loses_nothing(target):
    def killed():
        with Shards(target, "k") as shards:
            for number, piece in enumerate(PIECES):
                shards.add([piece], {"number": number})
            shards.finish()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert target.exists()
    assert fill(target) == 0
    assert target.read_bytes() == WHOLE


def test_nothing_stays_where_nothing_was_finished_or_nothing_can_be_shared(target):
    stopped(target, until=0)
    stopped(target, until=3, kept=False)

    def useless():
        with Shards(target, "k") as shards:
            shards.add([b"x"], 0)
            shards.discard()
            raise UserError("class")

    with pytest.raises(UserError, match="class"):
        useless()
    assert names(target.parent) == []


def test_shards_that_nobody_goes_on_with_go(target):
    stopped(target, until=3)
    old = time.time() - 8 * 24 * 3600
    for path in target.parent.iterdir():
        os.utime(path, (old, old))
    fill(target.with_name("y.bin"))
    assert names(target.parent) == ["y.bin"]


SLOW = """
import sys, time
from pathlib import Path
from ldd.disk.shards import Shards
with Shards(Path(sys.argv[1]), "k") as shards:
    for number in range(len(shards.facts), 40):
        print(number, flush=True)
        shards.add([bytes([number]) * 1000], number)
        time.sleep(0.02)
    shards.finish()
"""


def test_each_kill_costs_one_shard_at_most(target):
    made, after = [], (3, 1, 7, None)
    for count in after:
        process = subprocess.Popen([sys.executable, "-c", SLOW, target], stdout=subprocess.PIPE, text=True)
        lines = iter(process.stdout.readline, "")
        for seen, line in enumerate(lines, 1):
            made.append(int(line))
            if seen == count:
                process.send_signal(signal.SIGKILL)
        process.wait()
    assert sorted(set(made)) == [*range(40)]
    assert len(made) <= 40 + len(after) - 1
    assert target.read_bytes() == b"".join(bytes([number]) * 1000 for number in range(40))
    assert names(target.parent) == ["x.bin"]
