"""Fenced blocks of the pages: shell commands as bash expands them, Python as it stands."""

import re
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELL, PYTHON, OTHERS = ("", "bash"), ("python",), ("text", "yaml")

_FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>.+?) -->\n+)?^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *```",
    re.M | re.S,
)
_STUBS = """
PATH=/nowhere
say() { printf '%s\\0' "$@" >&3; printf '\\n\\0' >&3; }
command_not_found_handle() { say "$@"; }
source() { say source "$@"; }
"""
"""Every command that is not bash's own says its words and does nothing."""


class Block(NamedTuple):
    """A fenced block, without its indentation; `not_run` is the page's reason, or empty."""

    language: str
    text: str
    not_run: str


def blocks(page: Path) -> Iterator[Block]:
    """All of a page."""
    for found in _FENCE.finditer(page.read_text()):
        yield Block(found["language"], textwrap.dedent(found["text"]), found["why"] or "")


def commands(text: str, folder: Path) -> list[tuple[str, ...]]:
    """Words of each command that bash would start, each once: variables, loops and quotes are bash's to expand."""
    with (folder / "words").open("wb") as words:
        text = re.sub(r"<[a-z ]+>", "X", text)
        text = re.sub(r"(for \w+ in \w+)[^;]*;", r"\1;", text)  # one turn is as good as ten
        script = f"exec 3>&{words.fileno()}\n{_STUBS}\n{text}"
        found = subprocess.run(
            ["bash", "-u", "-c", script],
            cwd=folder,
            capture_output=True,
            text=True,
            pass_fds=[words.fileno()],
        )
    assert "syntax error" not in found.stderr, found.stderr
    assert "unbound variable" not in found.stderr, found.stderr
    parts = (folder / "words").read_text().split("\n\0")[:-1]
    return list(dict.fromkeys(tuple(part.split("\0")[:-1]) for part in parts))
