"""Files for images and clusters: sound scripts, and options that the command line takes."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import ldd

ROOT = Path(ldd.__file__).parent.parent
SCRIPTS = [*sorted((ROOT / "cluster").glob("*.sbatch")), ROOT / "docker" / "replay.sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed; the syntax alone was checked")
    found = subprocess.run([checker, script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_slurm_options_are_those_of_fit(fit_parser):
    """What the scripts run, with the variables as SLURM sets them."""
    for script in SCRIPTS[:-1]:
        (line,) = [
            line for line in script.read_text().replace("\\\n", "").splitlines() if line.startswith("srun")
        ]
        given = line.replace('"$SLURM_NTASKS_PER_NODE"', "4").replace('"$SLURM_NNODES"', "2")
        options = shlex.split(given.replace('"$@"', "").replace('"${words[@]}"', "latentdd fit"))
        options = options[options.index("fit") + 1 :]
        found = fit_parser.parse_args(
            ["fit", "--config", str(ROOT / "configs" / "quickstart.yaml"), *options]
        ).fit
        assert found.ckpt_path == "auto"
        assert found.trainer.accelerator == "gpu"
        assert found.trainer.enable_progress_bar is False
        several = script.name != "array.sbatch"
        assert (int(found.trainer.devices), found.trainer.num_nodes) == ((4, 2) if several else (1, 1))


def test_kubernetes_arguments_are_those_of_fit(fit_parser, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, job = yaml.safe_load_all((ROOT / "cluster" / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    found = fit_parser.parse_args(pod["containers"][0]["args"]).fit
    assert found.ckpt_path == "auto"
    mounted = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    for path in (found.trainer.default_root_dir, found.data.cache_dir, found.data.root):
        assert any(path.startswith(place) for place in mounted)
    claims = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == claims


def test_the_image_runs_as_kubernetes_says():
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    _, job = yaml.safe_load_all((ROOT / "cluster" / "kubernetes.yaml").read_text())
    assert f"ARG UID={job['spec']['template']['spec']['securityContext']['runAsUser']}" in dockerfile
    assert 'ENTRYPOINT ["latentdd"]' in dockerfile
