"""The package's facts agree with each other and with the docs."""

import re
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
    assert "FROM nvidia/cuda" in dockerfile
