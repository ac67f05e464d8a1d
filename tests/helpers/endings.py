"""The last words of a verb: what it made is there, and the next command is one that the program understands."""

import shlex
import sys

import pytest
from parsers import FILES, parse

SILENT = {"inspect", "plan", "doctor", "completion"}
"""Verbs that write nothing."""


def check_ending(words, printed, fit_parser, folder):
    """Check the end of what a command has printed in a folder.

    Args:
        words: of the command.
        printed: on stdout.
        fit_parser: of `latentdd fit`.
        folder: in which it ran.
    """
    verb, *rest = map(str, words)
    # What follows the next command in its turn needs what that one makes.
    lines = [line for line in printed.splitlines() if not line.startswith("then: latentdd ")]
    next_at = [at for at, line in enumerate(lines) if line.startswith(("next: latentdd ", "# next: "))]
    assert next_at, f"{verb} names no next command: {lines[-3:]}"
    assert next_at[-1] == len(lines) - 1, f"{verb} ends with {lines[-1]!r}"
    if verb not in SILENT and rest:
        made = lines[next_at[-1] - 1]
        assert made.startswith("made: "), f"{verb} does not say what it made: {lines[-3:]}"
        for path in made.removeprefix("made: ").split(", "):
            assert (folder / path).exists(), f"{verb}: {path} is not there"
    following = shlex.split(lines[-1].partition("latentdd ")[2].partition(")  #")[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["latentdd"])
        patch.chdir(folder)
        parse([FILES.get(word, word) for word in following], fit_parser)
