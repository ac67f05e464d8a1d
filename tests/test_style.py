"""The tree is linted, formatted and type-checked with the suite."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["lint", "format", "types"],
)
def test_style(command):
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_sizes():
    for path in (ROOT / "ldd").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
        assert path.name != "utils.py", path
