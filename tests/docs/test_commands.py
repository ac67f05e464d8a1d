"""Every command on the site and in the README parses, and every Python block compiles; the short ones run."""

import argparse
import importlib
import re
import sys

import pytest
from docs_blocks import OTHERS, PAGES, PYTHON, ROOT, SHELL, blocks, commands
from parsers import FILES, parse, parser_of, parsing_only
from small_world import protocol_file

from ldd import cli
from ldd.commands.prior import ACTIONS
from ldd.distiller.module import Distiller
from ldd.runs.command_line import DistillationCLI

OTHER_COMMANDS = {
    *(
        "apt-get",
        "bash",
        "cd",
        "chown",
        "docker",
        "git",
        "hf",
        "id",
        "jupyter",
        "mkdir",
        "mkdocs",
        "mypy",
        "pip",
        "podman",
        "pytest",
        "python",
        "ray",
    ),
    *("sbatch", "scontrol", "srun", "torchrun", "wc"),
}


@pytest.fixture(scope="module")
def fit_parser():
    return parser_of(DistillationCLI, Distiller, "runs/default")


def own_words(words):
    """What of a command is for `latentdd`, whoever starts it; None where nothing is."""
    words = [FILES.get(word, word) for word in words]
    if words[0] == "sbatch":
        script = next(word for word in words if word.endswith((".sbatch", ".sh")))
        assert script.startswith("runs/") or (ROOT / script).is_file(), script
        rest = words[words.index(script) + 1 :]
        return ["fit", *rest] if "--config" in rest else None
    for number, word in enumerate(words):
        program = word == "latentdd" or (word == "ldd" and words[number - 1] == "-m")
        if program and number + 1 < len(words) and words[number + 1] in cli.VERBS:
            return words[number + 1 :]
        assert word != "latentdd" or words[0] != "latentdd" or words[1:] in ([], ["--version"]), words
    return None


def check_benchmark(words):
    module = importlib.import_module(words[2])
    with parsing_only(argparse.ArgumentParser) as patch:
        patch.setattr(sys, "argv", list(words[2:]))
        module.main()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page, fit_parser, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["latentdd"])
    monkeypatch.chdir(ROOT)
    for block in blocks(page):
        assert block.language in (*SHELL, *PYTHON, *OTHERS), f"{page}: a block in {block.language!r}"
        if block.language not in SHELL:
            continue
        for words in commands(block.text, tmp_path):
            mine = own_words(words)
            assert mine or words[0] in OTHER_COMMANDS, f"{page}: unknown command {words[0]!r}"
            try:
                if mine:
                    parse(mine, fit_parser)
                elif words[:2] == ("python", "-m") and words[2].startswith("benchmarks."):
                    check_benchmark(words)
            except SystemExit:
                pytest.fail(f"{' '.join(words)}: {capsys.readouterr().err[-1500:]}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_verbs_within_a_sentence_are_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for words in re.findall(r"`latentdd ([^`]+)`", text):
        verb, *rest = words.split()
        assert verb in cli.VERBS or verb in ("--help", "--version", "VERB", "COMMAND"), words
        if verb == "prior" and rest:
            assert rest[0] in ACTIONS, words


def test_every_verb_is_on_the_page_of_verbs():
    text = (ROOT / "docs" / "api" / "command_line.md").read_text()
    assert re.findall(r"^\| `([a-z-]+)` \|", text, re.M) == list(cli.VERBS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_runs(page, tmp_path, monkeypatch):
    """In the order of the page, with one network of two epochs in the place of the protocol's four."""
    monkeypatch.chdir(tmp_path)
    small = repr(protocol_file(tmp_path, epochs=2)) + ", num_workers=1"
    namespace = {}
    for block in blocks(page):
        if block.language in PYTHON:
            code = compile(block.text.replace('"quick"', small), str(page), "exec")
            if not block.not_run:
                exec(code, namespace)
