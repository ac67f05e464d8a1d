"""The package's facts agree with each other and with the docs."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import ldd

ROOT = Path(__file__).parent.parent


def test_version_and_names():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "latentdd"
    assert project["scripts"] == {"latentdd": "ldd.cli:main"}
    assert f"version: {ldd.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {ldd.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_lower_bound_has_a_reason():
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("\ndependencies = [") : text.index("[project.optional-dependencies]")]
    for line in block.splitlines():
        if re.match(r'\s+"', line):
            assert "# " in line, line


def test_readme_commands_are_what_ci_runs():
    readme = (ROOT / "README.md").read_text()
    assert "\npip install -e . && latentdd fit --config configs/quickstart.yaml\n" in readme
    assert '\npip install -e ".[test]" && pytest\n' in readme


def test_docker_installs_as_the_readme_does():
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["latentdd"]' in dockerfile
    assert re.search(r"pip install .*-e \.", dockerfile)
    assert "USER latentdd" in dockerfile
    assert dockerfile.startswith("#")
    assert re.search(r"\nARG BASE=nvidia/cuda:[\w.-]+@sha256:[0-9a-f]{64}\nFROM \$\{BASE\}\n", dockerfile)


def test_ci_finds_its_interpreters_environments_and_smoke_tests(tmp_path):
    """With stand-ins of interpreters: one that was never made is skipped aloud, one whose packages do not come too."""
    named = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    own = ".".join(map(str, sys.version_info[:2]))
    first, second, *_ = [version for version in named if version != own]
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "python3").symlink_to(sys.executable)
    answers = (
        '[ "$1" = -m ] && exit 1\n[ "${2%sys.exit*}" != "$2" ] && exit 0'  # no venv; the version is right
    )
    stand_in = f'#!/bin/sh\n{answers}\nexec {sys.executable} "$@"\n'
    (binaries / f"python{first}").write_text(stand_in)
    (binaries / f"python{first}").chmod(0o755)
    script = (
        (ROOT / ".ci" / "run")
        .read_text()
        .partition("\nvenv=")[0]
        .replace('cd "$(dirname "$0")/.."', f"cd {ROOT}")
    )
    environment = {
        "PATH": f"{binaries}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "LDD_CI_CACHE": str(tmp_path / "cache"),
    }
    shown = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert f"SKIPPED: smoke tests on Python {first}: its environment could not be made" in shown
    assert f"SKIPPED: smoke tests on Python {second}: no interpreter found" in shown
