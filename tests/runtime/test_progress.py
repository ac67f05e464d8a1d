"""Counting in a pipe: a line at each tenth, or every half minute, and what a note costs."""

import logging

import pytest

from ldd.runtime import progress as module
from ldd.runtime.progress import duration, progress, tracked


@pytest.fixture
def clock(monkeypatch):
    """`clock(seconds)` lets time pass."""
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_a_line_every_half_minute(clock, capsys, caplog):
    with caplog.at_level(logging.INFO), progress("evaluating", 1000, unit="networks", done=400) as counter:
        for number in range(8):
            clock(10)
            counter.add(1, lambda number=number: f"network {number}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "evaluating: 403 of 1000, 30 s, 1 h 39 min left, network 2",
        "evaluating: 406 of 1000, 1 min 0 s, 1 h 39 min left, network 5",
    ]
    assert "evaluating: 8 networks in 1 min 20 s" in caplog.text


def test_a_line_each_tenth_but_not_at_once(clock, capsys):
    with progress("training", 20, unit="steps") as counter:
        for _ in range(20):
            clock(3)
            counter.add()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("training: ") and " of " in line] == [
        str(done) for done in range(2, 20, 2)
    ]


def test_a_note_is_worked_out_only_when_it_is_shown(clock, capsys):
    asked = []
    with progress("training", 1000, unit="steps") as counter:
        for _ in range(500):
            clock(0.1)
            counter.add(1, lambda: asked.append(1) or "loss 1")
    assert len(asked) < 10


def test_nothing_is_shown_of_little_or_hidden_work(clock, capsys, caplog):
    with caplog.at_level(logging.INFO):
        for total, shown in ((199, True), (1000, False)):
            with progress("decoding images", total, shown=shown) as counter:
                clock(60)
                counter.add(total)
                assert counter.done == total
    assert capsys.readouterr().err == ""
    assert not caplog.text


def test_work_of_which_nobody_knows_the_end(clock, capsys):
    with progress("training", None, unit="steps") as counter:
        clock(31)
        counter.add(3)
    assert counter.done == 3
    assert capsys.readouterr().err.splitlines()[0] == "training: 3, 31 s"


def test_ranks_that_count_for_each_other_do_not_pass_the_total():
    with progress("evaluating", 5, unit="networks") as counter:
        for _ in range(3):
            counter.add(2)
        assert counter.done == 5


def test_tracked_gives_what_it_is_given():
    assert list(tracked("sampling", "classes")("abc")) == list("abc")


def test_durations():
    assert [duration(s) for s in (9.46, 59.6, 750, 7530)] == ["9.5 s", "59.6 s", "12 min 30 s", "2 h 5 min"]
