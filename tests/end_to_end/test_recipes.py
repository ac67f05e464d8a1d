"""Every shipped YAML parses against the live signatures, and every objective component runs on the quickstart."""

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from parsers import parser_of

import ldd
from ldd import cli
from ldd.artefact.set import DistilledSet
from ldd.commands.experts import main as experts
from ldd.data import DistillationData
from ldd.prior_training.module import PriorTraining
from ldd.priors import DeconvolutionPrior
from ldd.runs.prior import PriorTrainingCLI
from ldd.sweeps.file import Sweep

ROOT = Path(ldd.__file__).parent.parent
CONFIGS = ROOT / "configs"
COMPONENTS = {
    **dict.fromkeys(("prior", "objective", "codes", "initializer", "labels", "rediffusion"), "model"),
    "pruner": "data",
}
"""Folder, which is also the option's name -> the section that the option is in."""
QUICKSTART = CONFIGS / "quickstart.yaml"
RECIPES = [*CONFIGS.glob("*.yaml"), *CONFIGS.glob("paper/*.yaml")]


def shipped(folder):
    return sorted((CONFIGS / folder).glob("*.yaml"))


def name(path):
    return str(path.relative_to(CONFIGS))


def test_no_folder_is_forgotten():
    tested = {"data", "experts", "prior_training", "paper", "ablations", *COMPONENTS}
    assert {path.name for path in CONFIGS.iterdir() if path.is_dir()} <= tested


@pytest.mark.parametrize("kind", COMPONENTS)
def test_components_parse(kind, fit_parser):
    """In the place of the quickstart's."""
    for path in shipped(kind):
        option = f"--{COMPONENTS[kind]}.{kind}"
        found = fit_parser.parse_args(["fit", "--config", str(QUICKSTART), option, str(path)]).fit
        component = found[f"{COMPONENTS[kind]}.{kind}"]
        wanted = yaml.safe_load(path.read_text())
        if "class_path" in wanted:
            assert component.class_path, path
        else:  # settings of the one class that there is
            assert {name: component[name] for name in wanted} == wanted, path


def test_data_parse_alone():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DistillationData, "data")
    for path in shipped("data"):
        assert parser.parse_args(["--data", str(path)]).data.source, path


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipes_parse(path, fit_parser):
    """As `latentdd fit --config RECIPE --print_config` does; the recipe of a federation is one of fit."""
    found = fit_parser.parse_args(["fit", "--config", str(path)]).fit
    assert found.data.image_size == (found.model.prior.init_args.get("image_size") or 32)
    text = path.read_text()
    command = rf"latentdd (fit|federate) --config configs/{name(path)}"
    assert re.search(command, text), "a recipe opens with its command"
    assert (found.evaluation.baselines is None) == ("paper" in name(path)), "those of minutes name theirs"
    if "paper" in name(path):
        assert f"runs/{path.stem}" == found.trainer.default_root_dir
        for word in ("Constants:", "Expected time: not yet measured", "released code"):
            assert word in text
    else:
        assert "onstants" in text, "a recipe names the source of its constants"


def test_print_config_of_the_command_itself(capsys, monkeypatch):
    """In this process; it shows the resolved file and builds nothing."""
    monkeypatch.setattr(sys, "argv", ["latentdd"])
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "--config", str(CONFIGS / "paper" / "prune_dm_128.yaml"), "--print_config"])
    assert stop.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["data"]["pruner"]["init_args"]["keep"] == 0.2
    assert shown["model"]["objective"]["init_args"]["lr_latents"] == 1.0


def test_sweeps_parse(fit_parser, tmp_path):
    for path in shipped("ablations"):
        sweep = Sweep.load(path)
        cells = sweep.cells(tmp_path)
        assert len({cell.folder for cell in cells}) == len(cells) > len(sweep.seeds) > 1
        assert f"latentdd sweep --config configs/{name(path)} --out" in path.read_text()
        for cell in cells[:: len(sweep.seeds)]:
            fit_parser.parse_args(cell.command()[:-2])


def test_the_pruning_sweep_takes_another_recipe_and_classifier(fit_parser, tmp_path):
    """Every share with every order once a seed, the whole set once a seed, all with what follows `--`."""
    extra = [
        "--config",
        str(QUICKSTART),
        "--data",
        str(CONFIGS / "data" / "imagenette.yaml"),
        "--data.root",
        "R",
    ]
    extra += [
        "--data.pruner.init_args.classifier",
        "mobilenet_v2",
        "--data.pruner.init_args.mean",
        "[0.5,0.5,0.5]",
    ]
    sweep = Sweep.load(CONFIGS / "ablations" / "prune.yaml")
    found = {}
    for cell in sweep.cells(tmp_path, extra):
        if cell.seed == sweep.seeds[0]:
            run = fit_parser.parse_args(cell.command()[:-2]).fit
            assert (run.data.root, run.trainer.max_steps) == ("R", 60)
            assert run.model.objective.init_args.real_batch == 16
            found[cell.names] = run.data.pruner
    assert found.pop(("unpruned", "")) is None
    shares = ("0.1", "0.2", "0.4", "0.6", "0.8")
    assert set(found) == {(keep, order) for keep in shares for order in ("easy", "hard", "random")}
    for (keep, order), pruner in found.items():
        own = pruner.init_args
        assert own.keep == float(keep)
        if order == "random":
            assert pruner.class_path == "ldd.data.RandomPruner"
        else:
            assert (own.order, own.classifier, own.mean) == (order, "mobilenet_v2", (0.5, 0.5, 0.5))
            assert (own.resize, own.weights) == ((224, 224), "IMAGENET1K_V1")


def test_experts_parse():
    for path in shipped("experts"):
        with pytest.raises(SystemExit) as stop:
            experts("experts", ["--config", str(path), "--print_config"])
        assert stop.value.code == 0, path


def test_prior_training_parses():
    parser = parser_of(PriorTrainingCLI, PriorTraining, "runs/prior", arguments=[])
    for path in shipped("prior_training"):
        assert parser.parse_args(["--config", str(path)]).model.batch_size > 0, path


SMALL = (
    "--trainer.max_steps",
    "2",
    "--trainer.limit_val_batches",
    "0",
    "--trainer.enable_progress_bar",
    "false",
)


@pytest.mark.parametrize("path", [p for p in shipped("objective") if not p.stem.startswith("d3_")], ids=name)
def test_each_objective_runs_on_the_quickstart(path, tiny_prior_path, tmp_path, monkeypatch):
    """Two steps with the component's own learning rates on a tiny prior and network."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["latentdd"])
    small = [*SMALL, "--model.prior.path_or_hub_id", str(tiny_prior_path), "--model.prior.num_steps", "2"]
    width = ["--model.objective.init_args.network.init_args.width", "8"]
    if path.stem == "d3":
        component = yaml.safe_load(path.read_text())
        for objective in component["init_args"]["objectives"]:
            objective["init_args"] |= {"trajectories": str(tmp_path / "experts")}
            objective["init_args"]["network"]["init_args"] = {"width": 8, "depth": 2}
        component["init_args"]["objectives"][0]["init_args"] |= {"max_start_epoch": 1, "syn_steps": 2}
        component["init_args"]["objectives"][1]["init_args"] |= {"samples": 2}
        path = tmp_path / "d3.yaml"
        path.write_text(yaml.safe_dump(component))
        small += ["--model.images_per_class", "2", "--experts.num_experts", "1"]
    elif path.stem == "mmd":
        small += ["--model.images_per_class", "2", "--model.objective.init_args.samples", "4", *width]
    elif path.stem == "pool":
        narrow = [
            {"class_path": f"ldd.networks.{name}", "init_args": {"width": 8}}
            for name in ("ConvNet", "AlexNet")
        ]
        small += [
            "--model.objective.init_args.real_batch",
            "4",
            "--model.objective.network",
            json.dumps(narrow),
        ]
    elif path.stem == "trajectory":
        out = str(tmp_path / "experts")
        recorded = ["--config", "configs/experts/digits.yaml", "--num_experts", "1", "--out", out]
        assert cli.main(["experts", *recorded, "--network.init_args.width", "8"]) == 0
        small += ["--model.objective.init_args.trajectories", out, *width]
    else:
        small += ["--model.objective.init_args.real_batch", "4", *width]
    run = ["--trainer.default_root_dir", str(tmp_path / "run"), "--preview.every_n_steps", "1000"]
    config = ["--config", "configs/quickstart.yaml", "--model.objective", str(path)]
    assert cli.main(["fit", *config, *small, *run]) == 0
    codes = DistilledSet.load(tmp_path / "run").codes
    assert all(torch.isfinite(value).all() for value in codes.values())


def test_d3_budgets_differ_in_numbers_only():
    """Those of 2 and 10 images per class from that of 1, which runs above."""
    first = yaml.safe_load((CONFIGS / "objective" / "d3.yaml").read_text())
    for budget in ("d3_2", "d3_10"):
        other = yaml.safe_load((CONFIGS / "objective" / f"{budget}.yaml").read_text())
        for one, two in zip(first["init_args"]["objectives"], other["init_args"]["objectives"], strict=True):
            changed = {key for key, value in one["init_args"].items() if value != two["init_args"][key]}
            assert one["init_args"].keys() == two["init_args"].keys()
            rates = {"lr_latents", "lr_conditioning", "lr_spread", "lr_decoder"}
            assert (
                rates
                < changed
                <= rates | {*("batch_syn", "step_size", "lr_step_size", "max_start_epoch", "samples")}
            )


# Decoders, Gaussians and classes of the recipe -> images per class without labels, as its first lines say.
BUDGETS = {"imagenet_1": 5, "imagenet_2": 2, "imagenet_10": 5, "tiny_1": 1, "tiny_2": 1, "tiny_10": 1} | {
    "tiny_federated": 4,
    "imagenette_latent": 0,
}


@pytest.mark.parametrize("stem", BUDGETS)
def test_d3_recipes_hold_to_their_budget(stem, fit_parser):
    path = CONFIGS / "paper" / f"d3_{stem}.yaml"
    model = fit_parser.parse_args(["fit", "--config", str(path)]).fit.model
    settings, ipc = dict(model.prior.init_args), model.images_per_class
    classes = {"imagenet": 1000, "tiny": 200, "imagenette": 10}[stem.split("_")[0]]
    if stem == "imagenette_latent":
        pixels, decoder, each = 128**2, 0, 2 * 3 * 32**2 + 512
    else:
        prior = DeconvolutionPrior(**settings)
        pixels, decoder = 64**2, sum(parameter.numel() for parameter in prior.trainable())
        each = 2 * math.prod(prior.latent_shape)
    floats = BUDGETS[stem] * decoder + classes * ipc * each
    said = f"{floats / (classes * 3 * pixels):.2f}"
    assert re.search(rf"{said}( images per class)?,? without", path.read_text().replace("\n#", "")), said


def test_d3_on_the_digits(tmp_path, monkeypatch):
    """From nothing: the run records its experts, distils, labels, and stores codes with the decoder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["latentdd"])
    small = [*SMALL, "--experts.num_experts", "1", "--preview.every_n_steps", "1000"]
    small += ["--model.labels.init_args.epoch", "4"]  # chosen by training students otherwise
    assert cli.main(["fit", "--config", str(CONFIGS / "d3_digits.yaml"), *small]) == 0
    distilled = DistilledSet.load(tmp_path / "runs" / "d3_digits")
    numbers = sum(value.numel() for part in (distilled.codes, distilled.decoder) for value in part.values())
    assert numbers == 29_775 <= 10 * 3 * 32**2
    assert distilled.soft_labels.shape == (80, 10)
    assert distilled.manifest["labels"]["epoch"] == 4
