"""Files for images and clusters: sound scripts, and options that the command line takes."""

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from kubernetes_pods import PODS
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import ldd

ROOT = Path(ldd.__file__).parent.parent
SCRIPTS = [*sorted((ROOT / "cluster").glob("*.sbatch")), ROOT / "docker" / "build_local.sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed; the syntax alone was checked")
    found = subprocess.run([checker, script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_slurm_options_are_those_of_fit(fit_parser):
    """What the scripts run, with the variables as SLURM sets them; `prepare.sbatch` runs no training."""
    for script in (each for each in SCRIPTS[:-1] if each.name != "prepare.sbatch"):
        (line,) = [
            line for line in script.read_text().replace("\\\n", "").splitlines() if line.startswith("srun")
        ]
        given = line.replace('"$SLURM_NTASKS_PER_NODE"', "4").replace('"$SLURM_NNODES"', "2")
        given = given.removesuffix(" || again_if_lost $?")
        options = shlex.split(
            given.replace('"$@"', "").replace('"${words[@]}"', "latentdd fit").replace('"${@:2}"', "")
        )
        options = options[options.index("fit") + 1 :]
        found = fit_parser.parse_args(
            ["fit", "--config", str(ROOT / "configs" / "quickstart.yaml"), *options]
        ).fit
        assert found.ckpt_path == "auto"
        assert found.trainer.accelerator == "gpu"
        assert found.trainer.enable_progress_bar is False
        several = script.name != "array.sbatch"
        assert (int(found.trainer.devices), found.trainer.num_nodes) == ((4, 2) if several else (1, 1))


def let_in(path):
    """Whether Docker's rules in `.dockerignore` let a file into the image: the last rule that fits a part decides."""
    found = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.lstrip("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        parts = path.split("/")
        if any(re.fullmatch(pattern, "/".join(parts[:count])) for count in range(1, len(parts) + 1)):
            found = line.startswith("!")
    return found


@pytest.mark.parametrize(
    "path",
    [
        *(".env", ".git/config", ".netrc", "id_rsa", "secrets.json", "ldd/.env", "configs/.secret/token"),
        *("data/train/cat/0.png", "weights/prior.safetensors", "runs/x/config.yaml", "shared/data/x.png"),
        *(
            "venv/bin/python",
            "env/lib/x.py",
            "lightning_logs/x",
            "ldd/__pycache__/cli.pyc",
            "x.egg-info/PKG-INFO",
        ),
        *("docs/priors.md", "tests/conftest.py", "docker/Dockerfile", "cluster/kubernetes.yaml", "mine.ckpt"),
    ],
)
def test_the_image_gets_no_data_and_no_secrets(path):
    assert not let_in(path)


def test_the_image_gets_all_that_it_is_built_of():
    whole = ["pyproject.toml", "README.md", "LICENSE", "docker/requirements.lock"]
    for folder in ("ldd", "configs"):
        files = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
        whole += [path.as_posix() for path in files if "__pycache__" not in path.parts]
    assert [path for path in whole if not let_in(path)] == []


def test_the_lock_has_a_hash_for_every_dependency():
    locked = {}
    for entry in re.split(r"\n(?=\w)", (ROOT / "docker" / "requirements.lock").read_text()):
        if found := re.match(r"([\w.-]+)==(\S+)", entry):
            locked[canonicalize_name(found[1])] = Version(found[2])
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for text in (*project["project"]["dependencies"], *project["build-system"]["requires"], "editables"):
        needed = Requirement(text)
        assert needed.specifier.contains(locked[canonicalize_name(needed.name)]), text
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    assert "--require-hashes -r docker/requirements.lock" in dockerfile
    assert "--no-deps --no-build-isolation -e ." in dockerfile


def test_the_image_runs_as_kubernetes_says():
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    for _, pod in PODS:
        assert f"ARG UID={pod['securityContext']['runAsUser']}" in dockerfile
    assert 'ENTRYPOINT ["latentdd"]' in dockerfile
