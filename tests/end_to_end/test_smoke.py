"""The shortest use of every verb, and the README's Python example: run on each Python that the package names."""

import json
import re
from pathlib import Path

import pytest
import reference
import torch
import yaml
from endings import check_ending
from original_ldm import build, checkpoint_of, config_of, randomise
from parsers import parser_of
from PIL import Image
from reference import CONFIGS, EVALUATION, NARROW, NO_BAR, QUICK, SHORT_CHAIN, STUDENT, THREE
from safetensors.torch import load_file

import ldd
from ldd import cli
from ldd.artefact.set import DistilledSet
from ldd.commands.prior import ACTIONS
from ldd.distiller.module import Distiller
from ldd.evaluation import evaluate
from ldd.priors import LatentDiffusionPrior
from ldd.runs.command_line import DistillationCLI

pytestmark = pytest.mark.smoke

README = Path(__file__).parents[2] / "README.md"
DATA = ("--data", CONFIGS / "data" / "digits.yaml", *THREE)
EXPERT = {"class_path": "ldd.evaluation.ExpertLabels", "init_args": {"trajectories": "recording"}}
SOFT = {"augmentations": [], "views": {"crop_scale": [0.5, 1.0], "flip": True}, "labels": "teacher"}

COMMANDS: dict[str, list[object]] = {
    "fit": reference.RUNS["dm"],
    "experts": reference.RUNS["experts"],
    "validate": [
        *("validate", *QUICK, *THREE, *SHORT_CHAIN, "--model.objective.network.width", 8, *EVALUATION),
        *("--trainer.default_root_dir", "dm", *NO_BAR),
    ],
    "plan": [
        *("plan", *QUICK, *THREE, *SHORT_CHAIN, "--model.objective.network.width", 8, *NO_BAR),
        *("--trainer.max_steps", 3, "--trainer.limit_val_batches", 0, "--probe_steps", 2),
    ],
    "sweep": [
        *("sweep", "--config", "sweep.yaml", "--out", "sweep", "--", *THREE, *SHORT_CHAIN, *NO_BAR),
        *("--trainer.max_steps", 1, "--model.objective.init_args.network.init_args.width", 4, *EVALUATION),
    ],
    "prepare": ["prepare", *DATA, "--data.cache_dir", "decoded"],
    "check": ["check", "dm", *DATA, "--networks", STUDENT, "--protocol", "protocol.yaml"],
    "train": [
        *("train", "dm", *DATA, "--network", NARROW, "--protocol", "protocol.yaml"),
        *("--out", "network.safetensors"),
    ],
    "rediffuse": [
        *("rediffuse", "dm", "--prior", "embedded:digits", "--out", "rediffused"),
        *("--rediffusion.num_steps", 2, "--rediffusion.stop_step", 0),
    ],
    "label-crops": [
        *("label-crops", "dm", *DATA, "--labels", "expert.yaml", "--protocol", "soft.yaml"),
        *("--out", "crops.safetensors"),
    ],
    "status": ["status", "dm", "sweep", "--json"],
    "inspect": ["inspect", "dm", "--json"],
    "inspect in words": ["inspect", "dm"],
    "report": ["report", "dm", "--out", "report.html"],
    "configs": ["configs", "--copy", "recipes"],
    "configs by name": ["configs"],
    "doctor": ["doctor", "--json"],
    "doctor in words": ["doctor"],
    "completion": ["completion"],
    "convert": [
        *("prior", "convert", "model.ckpt", "--config", "model.yaml", "--out", "converted"),
        *("--class-names", "names.txt"),
    ],
    "compare": [
        *("prior", "compare", "embedded:digits", *DATA, "--protocol", "protocol.yaml", "--repeats", 1),
        *("--images_per_class", 1, "--num_workers", 1, "--out", "compared"),
    ],
    "init": ["init", "own", "--licence", "CC0", "--plan", "false", "--out", "own_recipes"],
    "push": ["prior", "push", "converted", "user/prior", "--dry_run"],
}
"""Name -> arguments of `latentdd` that `reference.RUNS` lacks, in the order in which they need each other."""


def prepare(folder):
    """Write the files that the commands name."""
    reference.prepare(folder)
    expert = {**EXPERT, "init_args": {**EXPERT["init_args"], "epoch": 3, "network": json.loads(NARROW)}}
    expert["init_args"]["network"]["init_args"] = {"width": 8}
    sweep = {"base": str(CONFIGS / "quickstart.yaml"), "axes": {"seed": {"one": {}}}, "seeds": [1]}
    contents = {"expert.yaml": expert, "soft.yaml": reference.PROTOCOL | SOFT, "sweep.yaml": sweep}
    params = config_of()
    contents["model.yaml"] = {"model": {"params": params}}
    for name, content in contents.items():
        (folder / name).write_text(yaml.safe_dump(content))
    for name, grey in (("dark", 40), ("light", 210)):
        (folder / "own" / name).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (40, 40), (grey, grey, grey + number)).save(
                folder / "own" / name / f"{number}.png"
            )
    unet, stage = (randomise(module) for module in build(params))
    torch.save({"state_dict": checkpoint_of(params, unet, stage, torch.zeros(11, 16))}, folder / "model.ckpt")
    (folder / "names.txt").write_text("\n".join(f"n{row:08} thing {row}" for row in range(10)))


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Run the commands in a folder of their own: (folder, what each printed)."""
    folder = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as printing:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("HOME", str(folder / "home"))
        patch.setattr("sys.argv", ["latentdd"])
        prepare(folder)
        printed = {}
        for name, arguments in COMMANDS.items():
            with (folder / f"{name}.out").open("w+") as file:
                printing.setattr("sys.stdout", file)
                code = cli.main([str(argument) for argument in arguments])
                printing.undo()
                file.seek(0)
                printed[name] = file.read()
            assert code == 0, name
    return folder, printed


def test_every_verb_is_used():
    """Here or in the reference runs, which are part of the same check."""
    used = [(*map(str, arguments), "")[:2] for arguments in (*COMMANDS.values(), *reference.RUNS.values())]
    assert {verb for verb, _ in used} == {*cli.VERBS}
    assert {action for verb, action in used if verb == "prior"} == {*ACTIONS}


def test_a_run_and_its_evaluation(said):
    folder, _ = said
    assert DistilledSet.load(folder / "dm").classes[2].wnid == "digit-7"
    rows = [*reference.rows_of(folder / "dm" / "evaluation.csv")]
    assert {row["set"] for row in rows} >= {"distilled", "initial", "random_real"}
    assert all(0 < float(row["accuracy"]) <= 1 for row in rows)
    assert (folder / "sweep" / "sweep.csv").read_text().count("\n") >= 2


def test_what_the_other_verbs_leave(said):
    folder, printed = said
    assert "3 steps on cpu" in printed["plan"]
    assert {part["state"] for part in json.loads(printed["status"])} == {"finished"}
    found = json.loads(printed["inspect"])
    assert (found["num_classes"], found["images_per_class"]) == (3, 1)
    assert "confusion.png" in {path.name for path in (folder / "dm" / "checks").iterdir()}
    assert load_file(folder / "network.safetensors")
    assert json.loads(printed["doctor"])["packages"] == "all that are needed"
    assert "complete -o filenames -F _latentdd latentdd\n" in printed["completion"]
    crops = load_file(folder / "crops.safetensors")
    assert all(len(tensor) for tensor in crops.values())
    assert "<table" in (folder / "report.html").read_text()
    assert "nothing was uploaded" in printed["push"]
    assert (folder / "compared" / "comparison.png").is_file()
    assert yaml.safe_load((folder / "own_recipes" / "fit.yaml").read_text())["data"]["root"]
    assert (folder / "recipes" / "quickstart.yaml").read_text() == (CONFIGS / "quickstart.yaml").read_text()
    assert len(LatentDiffusionPrior(str(folder / "converted")).classes) == 10


@pytest.fixture(scope="module")
def fit_parser():
    return parser_of(DistillationCLI, Distiller, "runs/default")


@pytest.mark.parametrize(
    "name", [name for name, words in COMMANDS.items() if not {"--json", "--dry_run"} & {*words}]
)
def test_ending(said, fit_parser, name):
    folder, printed = said
    check_ending(COMMANDS[name], printed[name], fit_parser, folder)


def test_the_python_example_of_the_readme(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(import lightning.*?)```", README.read_text(), re.DOTALL)
    protocol = tmp_path / "protocol.yaml"
    protocol.write_text(json.dumps(reference.PROTOCOL))
    short = {"protocol": str(protocol), "baselines": [], "num_workers": 1}
    monkeypatch.setattr(ldd, "evaluate", lambda *given, **named: evaluate(*given, **named | short))
    example, shortened = re.subn(r"max_steps=\d+", "max_steps=2", example)
    assert shortened == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(README), "exec"), {})
    assert DistilledSet.load("runs/python/distilled").images.shape == (10, 3, 32, 32)
    assert "narrow" in capsys.readouterr().out
