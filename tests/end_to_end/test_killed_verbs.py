"""Every verb that writes: killed before one of its files has its name, started again, the same bytes and no litter."""

import json

import pytest
import torch
from processes import Renames, killed, latentdd
from small_runs import ROOT
from small_world import protocol_file

from ldd.disk.files import read_tensors, sha256

OLD = ROOT / "tests" / "data" / "1369bc3"
DIGITS = ("--data", "configs/data/digits.yaml", "--data.subset", '["digit-0", "digit-1", "digit-7"]')
STUDENT = '{"n": {"class_path": "ldd.networks.ConvNet", "init_args": {"width": 4, "depth": 2}}}'
PIXELS = ("--config", "configs/quickstart.yaml", "--model.prior", "configs/prior/pixel.yaml")
SMALL = (
    *(
        "--model.objective.lr_latents",
        2,
        "--model.objective.real_batch",
        2,
        "--model.objective.network.width",
        4,
    ),
    *("--trainer.max_steps", 2, "--checkpoint.every_n_steps", 1, "--trainer.enable_progress_bar", "false"),
)
VERBS = {
    "export": ["export", OLD / "dm", "--format", "imagefolder", "--out", "OUT/made"],
    "export pt": ["export", OLD / "dm", "--format", "pt", "--out", "OUT/made.pt"],
    "import": ["import", "OUT/../pictures", *DIGITS, "--out", "OUT/made"],
    "prune": [
        *(
            "prune",
            *DIGITS,
            "--pruner",
            "configs/pruner/random.yaml",
            "--pruner.keep",
            0.5,
            "--out",
            "OUT/made.parquet",
        ),
    ],
    "train": [
        *(
            "train",
            OLD / "dm",
            "--network",
            "ldd.networks.ConvNet",
            "--network.width",
            4,
            "--network.depth",
            2,
        ),
        *("--protocol", "OUT/../small.yaml", "--out", "OUT/made.safetensors"),
    ],
    "evaluate": [
        *(
            "evaluate",
            OLD / "dm",
            *DIGITS,
            "--protocol",
            "OUT/../small.yaml",
            "--networks",
            STUDENT,
            "--repeats",
            2,
        ),
        *("--baselines", "random_real", "--num_workers", 1, "--out", "OUT/made"),
    ],
    "report": ["report", OLD / "dm", "--overwrite", "true", "--out", "OUT/made.html"],
    "prior sample": [
        *("prior", "sample", "embedded:digits", "--per-class", 1, "--num-steps", 1, "--out", "OUT/made.png"),
    ],
    "federate": [
        *("federate", *PIXELS, *SMALL, *DIGITS[2:], "--subtasks", 2, "--trainer.limit_val_batches", 0),
        *("--out", "OUT/made"),
    ],
}


def made(folder):
    """What matters of the files in a folder: their bytes, without what tells of the clock."""
    found = {}
    for path in sorted(folder.rglob("*")):
        assert not path.name.endswith((".tmp", ".old", ".lock")), path
        name = str(path.relative_to(folder))
        if {"logs", "previews"} & {*path.parts}:  # a version for each start; none where no step was left
            continue
        if path.is_dir() or path.suffix in (".ckpt", ".log", ".html"):
            found[name] = None
        elif path.name == "evaluation.csv":
            found[name] = [line.split(",")[:7] for line in path.read_text().splitlines()]
        elif path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            found[name] = manifest["sha256"], manifest.get("step")
        elif path.suffix == ".pt":  # the name of the file beside it is in the archive
            found[name] = {key: str(value) for key, value in torch.load(path, weights_only=True).items()}
        elif path.name == "made.safetensors":  # the order of its metadata is by chance
            found[name] = {key: value.tolist() for key, value in read_tensors(path).items()}
        elif path.suffix not in (".json", ".parquet", ".yaml") or path.name.endswith("made.parquet"):
            found[name] = sha256(path)
    return found


@pytest.mark.parametrize(
    ("verb", "share"), [*((verb, 0.0) for verb in VERBS), ("evaluate", 0.6), ("federate", 0.7)]
)
def test_a_verb_that_was_killed_gives_the_same_files(verb, share, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    protocol_file(tmp_path)
    if verb == "import":
        assert latentdd_quietly(VERBS["export"], tmp_path / "pictures_parent") == 0
        (tmp_path / "pictures_parent" / "made").rename(tmp_path / "pictures")
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    for folder in (unbroken, broken):
        folder.mkdir()
    with Renames() as renames:
        assert latentdd_quietly(VERBS[verb], unbroken) == 0
    moment = max(1, round(share * renames.count))
    assert killed(latentdd, spelt(VERBS[verb], broken), tmp_path / "log", before=moment)
    assert latentdd_quietly(VERBS[verb], broken) == 0
    expected = made(unbroken)
    assert expected
    assert made(broken) == expected


def spelt(words, folder):
    return [str(word).replace("OUT", str(folder)) for word in words]


def latentdd_quietly(words, folder):
    from ldd import cli

    return cli.main(spelt(words, folder))
