"""Files made in parts: the bytes of one process, whoever does what, in which order, and whoever is stopped."""

import multiprocessing
import time
from itertools import permutations

import pytest

from ldd.disk import locks, parts
from ldd.disk.parts import NthPart, Work, make, make_part, parse_part
from ldd.disk.shards import Shards
from ldd.errors import UserError


def byte_of(unit):
    return bytes([unit]) * (1 + unit % 3)  # lengths differ


def work(target, units=10, key="k", stop_at=None, log=None, seconds=0.0, size=2):
    """A file of units of one to three bytes, `size` of them a shard; an interrupt comes before a unit is done."""

    def add(shards, todo):
        for start in range(todo.start, todo.stop, size):
            places = range(start, min(start + size, todo.stop))
            for unit in places:
                time.sleep(seconds)
                if log is not None:
                    with open(log, "a") as file:
                        file.write(f"{unit}\n")
                if unit == stop_at:
                    raise KeyboardInterrupt
            shards.add(map(byte_of, places), len(places))

    def finish(shards):
        assert sum(shards.facts) == units
        shards.finish()

    def find():
        return target.read_bytes() if target.is_file() else None

    return Work(target, key, units, sum, add, finish, find, f"{units} units", num_bytes=3 * units)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "x.bin"


def expected(units=10):
    return b"".join(map(byte_of, range(units)))


def names(target):
    return sorted(path.name for path in target.parent.iterdir())


@pytest.mark.parametrize(
    "order", [*permutations((1, 2, 3)), (1, 1, 2, 3)], ids=lambda order: "".join(map(str, order))
)
def test_whoever_comes_last_leaves_the_file_of_one_process(target, order):
    *before, last = order
    assert [make_part(work(target), NthPart(number, 3)) for number in before] == [None] * len(before)
    assert not target.exists()
    assert make_part(work(target), NthPart(last, 3)) == expected()
    assert names(target) == ["x.bin"]
    assert make_part(work(target, stop_at=0), NthPart(1, 3)) == expected()  # nothing is left to do


@pytest.mark.parametrize(("units", "of"), [(2, 5), (1, 1), (1, 3), (0, 2), (10, 10)])
def test_more_parts_than_units(target, units, of):
    found = [make_part(work(target, units), NthPart(number + 1, of)) for number in range(of)]
    assert found[-1] == expected(units)
    assert names(target) == ["x.bin"]


def test_a_stopped_part_loses_the_shard_that_it_was_at(target, tmp_path):
    make_part(work(target, 20), NthPart(1, 2))
    with pytest.raises(KeyboardInterrupt):
        make_part(work(target, 20, stop_at=15), NthPart(2, 2))
    assert make_part(work(target, 20, log=tmp_path / "log"), NthPart(2, 2)) == expected(20)
    assert [*map(int, (tmp_path / "log").read_text().split())] == [14, 15, 16, 17, 18, 19]


@pytest.mark.parametrize("after", range(4))
def test_a_stopped_joining_goes_on(target, tmp_path, monkeypatch, after):
    """Parts that were joined are gone already; who makes one of them again finds that it is there."""
    for number in (1, 2, 3):
        make_part(work(target), NthPart(number, 4))
    taken, take = [], Shards.take

    def stopped(self, other, number):
        if len(taken) == after:
            raise KeyboardInterrupt
        taken.append(other)
        take(self, other, number)

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "take", stopped)
        with pytest.raises(KeyboardInterrupt):
            make_part(work(target), NthPart(4, 4))
    assert len(names(target)) == 2 * (4 - after + (after > 0))
    log = tmp_path / "log"
    assert make_part(work(target, log=log), NthPart(1, 4)) == expected()
    assert not log.exists()
    assert names(target) == ["x.bin"]


def test_a_single_process_goes_on_with_parts_and_parts_with_what_it_left(target, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(work(target, stop_at=4, size=3))  # three units, which end within a shard of the first part
    assert make_part(work(target), NthPart(2, 2)) is None
    log = tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        make_part(work(target, stop_at=2), NthPart(1, 2))
    assert make(work(target, log=log)) == expected()
    assert [*map(int, log.read_text().split())] == [2, 3, 4, 3]
    log.unlink()
    assert names(target) == ["x.bin"]


def test_joining_in_the_middle_of_a_shard(target, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make(work(target, stop_at=7, size=3))
    make_part(work(target, size=4), NthPart(1, 2))
    log = tmp_path / "log"
    assert make_part(work(target, size=4, log=log), NthPart(2, 2)) == expected()
    assert [*map(int, log.read_text().split())] == [
        5,
        6,
        7,
        8,
        9,
        6,
        7,
        8,
    ]  # its own part, and one shard again


def test_joining_names_what_is_missing_and_what_to_type(target):
    with pytest.raises(UserError, match=r"there are no parts of .*x\.bin; make them with --part K/N"):
        make_part(work(target), parts.JOIN)
    make_part(work(target), NthPart(2, 4))
    with pytest.raises(
        UserError, match=r"parts 1, 3 and 4 of 4 of .*x\.bin are missing; make each with --part 1/4, or leave"
    ):
        make_part(work(target), parts.JOIN)
    make_part(work(target), NthPart(1, 4))
    make_part(work(target), NthPart(4, 4))
    with pytest.raises(UserError, match=r"part 3 of 4 of .* is missing; make it with --part 3/4"):
        make_part(work(target), parts.JOIN)
    make_part(work(target), NthPart(3, 4))
    assert make_part(work(target), parts.JOIN) == expected()


def test_a_part_of_another_key_is_not_joined(target):
    make_part(work(target), NthPart(1, 2))
    assert make_part(work(target, key="other"), NthPart(2, 2)) is None
    with pytest.raises(
        UserError, match=r"missing \(part 2 of 2 is of other settings or images\); make it with"
    ):
        make_part(work(target), parts.JOIN)
    assert make_part(work(target), NthPart(2, 2)) == expected()
    assert names(target) == ["x.bin"]


def test_parts_of_another_number_are_refused(target):
    make_part(work(target), NthPart(1, 2))
    with pytest.raises(
        UserError, match=r"parts of 2 of .* lie there already; go on with --part K/2, or delete"
    ):
        make_part(work(target), NthPart(1, 3))
    for path in target.parent.glob(".x.bin.*"):
        path.unlink()
    assert make_part(work(target), NthPart(1, 3)) is None


def test_without_locks_there_are_no_parts(target, monkeypatch):
    monkeypatch.setattr(locks, "_lock", lambda descriptor, busy: False)
    with pytest.raises(UserError, match=r"the file system of cache_dir \(.*\) has no locks"):
        make_part(work(target), NthPart(1, 2))
    assert names(target) == []
    assert make(work(target)) == expected()


def test_the_same_part_twice_at_once_is_made_once(target, tmp_path):
    processes, log = multiprocessing.get_context("fork"), tmp_path / "log"
    both = [
        processes.Process(target=make_part, args=(work(target, log=log, seconds=0.02), NthPart(1, 2)))
        for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert [*map(int, log.read_text().split())] == [0, 1, 2, 3, 4]
    assert make_part(work(target), NthPart(2, 2)) == expected()


def test_a_part_whose_maker_is_killed_is_made_by_who_waits(target, tmp_path):
    processes, log = multiprocessing.get_context("fork"), tmp_path / "log"
    killed = processes.Process(target=make_part, args=(work(target, log=log, seconds=0.1), NthPart(1, 2)))
    killed.start()
    while not log.exists() or len(log.read_text().split()) < 4:
        assert killed.is_alive()
    killed.kill()
    killed.join()
    again = tmp_path / "again"
    assert make_part(work(target, log=again), NthPart(1, 2)) is None
    assert len(again.read_text().split()) <= 5 - 2  # at most the shard it was at
    assert make_part(work(target), NthPart(2, 2)) == expected()


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "3", "a/b", "1/4/2", "-1/4", "", "٣/٤"])
def test_what_names_no_part_is_refused(text):
    with pytest.raises(UserError, match=r"part \("):
        parse_part(text)


def test_a_member_of_an_array_knows_its_part(monkeypatch):
    for name in ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        UserError, match=r"says which member of an array this is; give its number, such as 1/4"
    ):
        parse_part("auto/4")
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")  # counted from 0
    assert parse_part("auto/4") == NthPart(1, 4)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    assert parse_part("auto/4") == NthPart(4, 4)
    with pytest.raises(UserError, match=r"part \(4/3\): parts are numbered from 1"):
        parse_part("auto/3")


def test_parts_differ_by_one_unit_and_leave_none_out():
    for count, of in ((1_281_167, 16), (7, 3), (2, 5)):
        ranges = [NthPart(number + 1, of).units(count) for number in range(of)]
        assert [ranges[0].start, *(r.stop for r in ranges)] == [*(r.start for r in ranges), count]
        assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    assert parse_part("3/16") == NthPart(3, 16)
