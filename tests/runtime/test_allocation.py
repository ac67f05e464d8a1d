"""Blocks that a process keeps, counted by the pages that it has to take anew."""

import os
import subprocess
import sys

import pytest

from ldd.runtime.allocation import keep_freed_blocks

PAGES = """
import resource, subprocess, sys
import numpy
from ldd.runtime.allocation import keep_freed_blocks
kept = sys.argv[1] == "keep" and keep_freed_blocks()
if sys.argv[2:]:  # in a process that this one starts
    sys.exit(subprocess.run([sys.executable, "-c", sys.argv[2], "leave"]).returncode)
def work(times):
    for _ in range(times):
        one, two = (numpy.full(2**18 + 2**15 * i, 1, "float32") for i in range(2))  # 1 MiB: 256 pages of 4 KiB
work(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work(100)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(not keep_freed_blocks({}), reason="no glibc")


def pages(*words, **variables):
    """What a process says that did or did not ask for it, and how many pages it took for blocks that it had freed."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name != "GLIBC_TUNABLES"
    }
    said = subprocess.run(
        [sys.executable, "-c", PAGES, *words],
        env=clean | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = said.stdout.split()
    return kept == "True", int(count)


@glibc
def test_blocks_are_taken_again_without_new_pages():
    left, kept, child = pages("leave"), pages("keep"), pages("keep", PAGES)
    assert (left[0], kept[0]) == (False, True)
    assert kept[1] < left[1] / 20
    assert child[1] < left[1] / 20


@glibc
@pytest.mark.parametrize(
    "variables", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}]
)
def test_settings_of_the_user_hold(variables):
    before = dict(variables)
    assert not keep_freed_blocks(variables)
    assert variables == before
    assert not pages("keep", **variables)[0]


def test_elsewhere_nothing_is_set(monkeypatch):
    class Without:
        def __init__(self, _):
            pass

    monkeypatch.setattr("ctypes.CDLL", Without)
    variables = {}
    assert not keep_freed_blocks(variables)
    assert variables == {}
