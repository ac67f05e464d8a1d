"""The sets in the package: whole, described, within their golden score, and read-only for every verb."""

import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from small_world import protocol_file

import ldd
from ldd import DistillationData, DistilledSet, cli, evaluate
from ldd.artefact.identity import identity
from ldd.artefact.location import EMBEDDED
from ldd.disk.files import sha256
from ldd.evaluation import Protocol
from ldd.networks import ConvNet

NAMES = {"digits-1": 1, "digits-10": 10}


def golden_of(name):
    return json.loads((EMBEDDED / name / "golden.json").read_text())


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_these_are_all():
    assert sorted(path.name for path in EMBEDDED.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_set_is_small_whole_and_described(name):
    distilled, golden = DistilledSet.load(f"embedded:{name}"), golden_of(name)
    assert distilled.images_per_class == NAMES[name]
    assert (distilled.num_classes, distilled.image_size) == (10, 32)
    assert identity(distilled) == golden["identity"]
    assert sum(map(len, contents(EMBEDDED / name).values())) < 1_000_000
    manifest = distilled.manifest
    assert manifest.config["model"]["prior"]["init_args"]["path_or_hub_id"] == "embedded:digits"
    assert manifest.seed == golden["seed"] == 0
    [command] = json.loads((EMBEDDED / name / "commands.json").read_text())
    card = (EMBEDDED / name / "README.md").read_text()
    for fact in (
        f"`{command['command'].replace('ld3m_digits.yaml', 'ld3m_digits')}`",
        "- **seed**: 0\n",
        f"**seconds**: {manifest.ledger.stages['distil']['seconds']:.0f} of distilling",
        golden["identity"],
        f"{100 * golden['mean']:.1f} %",
        f"random real digits give {100 * golden['random_real']:.1f} %",
        "CC BY 4.0",
        DistillationData().spec.fingerprint,
    ):
        assert fact in card, fact
    losses = (EMBEDDED / name / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert len(losses) == 1 + manifest.step


@pytest.mark.parametrize("name", NAMES)
def test_the_golden_score_is_reproduced(name):
    """With a narrow network, so that it takes seconds: 0.4 s of one core for each of digits-1, 2.7 s of digits-10."""
    golden = golden_of(name)
    network = golden["networks"]["ConvNet"]
    assert network["class_path"] == "ldd.networks.ConvNet"
    assert Protocol.load(golden["protocol"]).hash == golden["protocol_hash"]
    data = DistillationData(image_size=golden["image_size"])
    assert data.spec.fingerprint == golden["test_split_fingerprint"]
    report = evaluate(
        DistilledSet.load(f"embedded:{name}"),
        {"ConvNet": partial(ConvNet, **network["init_args"])},
        data,
        protocol=golden["protocol"],
        repeats=golden["repeats"],
        seed=golden["seed"],
        baselines=(),
        num_workers=0,
    )
    found = [row.accuracy for row in report.rows]
    assert len(found) == golden["repeats"]
    assert abs(sum(found) / len(found) - golden["mean"]) <= golden["tolerance"]
    assert golden["mean"] == pytest.approx(sum(golden["accuracies"]) / golden["repeats"], abs=1e-5)
    assert golden["mean"] > golden["random_real"]


def test_verbs_take_the_name_and_leave_the_package_as_it_is(tmp_path, monkeypatch, capsys):
    """In a folder that has a set called `initial`, which is none of theirs."""
    before = contents(EMBEDDED)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EMBEDDED / "digits-10" / "distilled", tmp_path / "initial")
    protocol = str(protocol_file(tmp_path))
    name = "embedded:digits-1"
    for command in (
        ("inspect", name, "--json"),
        ("export", name, "--format", "parquet", "--out", "exported"),
        ("report", name, "embedded:digits-10", "--out", "report.html"),
        ("train", name, "--network", "ldd.networks.ConvNet", "--network.width", "8", "--protocol", protocol, "--out",
         "weights.safetensors"),
        ("evaluate", name, "--data", "digits", "--protocol", protocol, "--repeats", "1", "--baselines", "none",
         "--num_workers", "0", "--out", "evaluated"),
        ("check", name, "--data", "digits", "--protocol", protocol, "--repeats", "0", "--out", "checked"),
    ):  # fmt: skip
        assert cli.main([*command]) == 0, (command, capsys.readouterr().err)
    rows = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())
    assert "initial" not in json.dumps(rows["protocols"])
    page = (tmp_path / "report.html").read_text()
    assert "digits-10" in page
    assert str(Path(ldd.__file__).parent) not in page
    made = [one["command"] for one in json.loads((tmp_path / "exported" / "commands.json").read_text())]
    assert made[-1] == f"latentdd export {name} --format parquet --out exported"
    assert made[0].startswith("latentdd fit --config ld3m_digits")
    assert cli.main(["check", name, "--data", "digits", "--protocol", protocol, "--repeats", "0"]) == 2
    assert (
        f"out: {name} is in the package, where nothing is written; name a folder with --out"
        in capsys.readouterr().err
    )
    assert contents(EMBEDDED) == before


def test_runs_start_from_the_codes_of_a_set_in_the_package():
    from ldd.initializers import StoredCodes

    assert DistilledSet.load(StoredCodes("embedded:digits-1").path).codes is not None


def test_all_files_go_into_a_wheel():
    """Which takes what version control does not ignore."""
    files = [str(path) for path in EMBEDDED.rglob("*") if path.is_file()]
    found = subprocess.run(
        ["git", "check-ignore", *files], cwd=EMBEDDED, capture_output=True, text=True, check=False
    )
    if found.returncode == 128:
        pytest.skip(f"no version control here: {found.stderr.strip()}")
    assert found.stdout == ""
    for name in NAMES:
        hashes = DistilledSet.load(f"embedded:{name}").manifest.sha256
        assert all(sha256(EMBEDDED / name / "distilled" / file) == digest for file, digest in hashes.items())
