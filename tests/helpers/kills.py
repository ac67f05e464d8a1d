"""Every verb that writes, small, with what it needs; and what a killed one must end with: the same files, no litter."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import original_transformer
import torch
import yaml
from pruning_cases import write_folder
from small_runs import ROOT
from small_world import protocol_content, protocol_file
from tiny_prior import write_prior_folder

from ldd.disk.files import read_tensors, sha256, write_tensors
from ldd.networks import ConvNet

OLD = ROOT / "tests" / "data" / "1369bc3"
_DIGITS = ("--data", "configs/data/digits.yaml", "--data.subset", '["digit-0", "digit-1", "digit-7"]')
_STUDENT = '{"n": {"class_path": "ldd.networks.ConvNet", "init_args": {"width": 4, "depth": 2}}}'
_NETWORK = ("ldd.networks.ConvNet", "--network.width", 4, "--network.depth", 2)
_SMALL = (
    *("--config", "configs/quickstart.yaml", "--model.prior", "configs/prior/pixel.yaml"),
    *("--model.objective.lr_latents", 2, "--model.objective.real_batch", 2),
    *("--model.objective.network.width", 4, "--trainer.max_steps", 2, "--checkpoint.every_n_steps", 1),
    *("--trainer.enable_progress_bar", "false", *_DIGITS[2:]),
)
_JUDGED = (
    *("--evaluation.protocol", "WORLD/small.yaml", "--evaluation.repeats", 1),
    *("--evaluation.baselines", "random_real", "--evaluation.num_workers", 1),
)
_SMALLEST = ("--protocol", "WORLD/small.yaml")
_TEACHER = (
    *("--labels", "ldd.evaluation.NetworkLabels", "--labels.weights", "WORLD/teacher.safetensors"),
    *("--labels.network", "ldd.networks.ConvNet", "--labels.network.width", 4, "--labels.network.depth", 2),
)
VERBS: dict[str, list[object]] = {
    "fit": [
        *("fit", *_SMALL, *_JUDGED, "--data.cache_dir", "OUT/made/decoded", "--ckpt_path", "auto"),
        *("--trainer.default_root_dir", "OUT/made"),
    ],
    "sweep": ["sweep", "--config", "WORLD/sweep.yaml", "--out", "OUT/made"],
    "federate": [
        *("federate", *_SMALL, "--subtasks", 2, "--trainer.limit_val_batches", 0, "--out", "OUT/made"),
    ],
    "experts": [
        *("experts", *_DIGITS, "--network", *_NETWORK, "--num_experts", 3, "--epochs", 2),
        *("--progress", "false", "--out", "OUT/made"),
    ],
    "label": [
        *("label", OLD / "dm", *_DIGITS, *_TEACHER, *_SMALLEST, "--repeats", 1, "--num_workers", 1),
        *("--curve", "OUT/curve", "--out", "OUT/made"),
    ],
    "label-crops": [
        *("label-crops", OLD / "dm", *_DIGITS, *_TEACHER, "--protocol", "WORLD/taught.yaml"),
        *("--out", "OUT/made.safetensors"),
    ],
    "prune": [
        *("prune", *_DIGITS, "--pruner", "configs/pruner/el2n.yaml", "--pruner.networks", 2),
        *("--pruner.training.epochs", 1, "--pruner.training.network.width", 4),
        *("--pruner.cache_dir", "OUT/scores", "--lists", "OUT/lists", "--out", "OUT/made.parquet"),
    ],
    "prior train": [
        *("prior", "train", "--config", "configs/prior_training/digits.yaml", *_DIGITS[2:]),
        *("--trainer.max_steps", 6, "--model.autoencoder_steps", 2, "--model.views", 2),
        *("--model.cache_dir", "OUT/made/latents", "--checkpoint.every_n_steps", 1),
        *("--samples.every_n_steps", 0, "--trainer.enable_progress_bar", "false"),
        *("--ckpt_path", "auto", "--trainer.default_root_dir", "OUT/made"),
    ],
    "prior convert": [
        *("prior", "convert", "WORLD/sit.pt", "--form", "sit", "--heads", original_transformer.HEADS),
        *("--vae", "WORLD/prior/vae", "--class-names", "WORLD/names.txt", "--out", "OUT/made"),
    ],
    "prior sample": [
        *("prior", "sample", "embedded:digits", "--per-class", 1, "--num-steps", 1, "--out", "OUT/made.png"),
    ],
    "prior compare": [
        *("prior", "compare", "WORLD/prior", "--data.source", "ldd.data.FolderSource"),
        *("--data.root", "WORLD/few", *_SMALLEST, "--images_per_class", "1,2", "--repeats", 1),
        *("--num_workers", 1, "--out", "OUT/made"),
    ],
    "train": ["train", OLD / "dm", "--network", *_NETWORK, *_SMALLEST, "--out", "OUT/made.safetensors"],
    "evaluate": [
        *("evaluate", OLD / "dm", *_DIGITS, *_SMALLEST, "--networks", _STUDENT, "--repeats", 2),
        *("--baselines", "random_real", "--num_workers", 1, "--out", "OUT/made"),
    ],
    "check": ["check", OLD / "dm", *_DIGITS, *_SMALLEST, "--networks", _STUDENT, "--out", "OUT/made"],
    "export": ["export", OLD / "dm", "--format", "imagefolder", "--out", "OUT/made"],
    "export pt": ["export", OLD / "dm", "--format", "pt", "--out", "OUT/made.pt"],
    "import": ["import", "WORLD/pictures", *_DIGITS, "--out", "OUT/made"],
    "report": ["report", OLD / "dm", "--overwrite", "true", "--out", "OUT/made.html"],
}
"""Words of `latentdd`; WORLD stands for the folder that `make_world` fills, OUT for one of the verb's own."""


def make_world(folder: Path) -> None:
    """Write what the verbs read: protocols, a teacher, pictures of a set, a checkpoint and a sweep."""
    protocol_file(folder)
    taught = protocol_content(id="taught", labels="teacher", temperature=4)
    (folder / "taught.yaml").write_text(yaml.safe_dump(taught))
    torch.manual_seed(0)
    write_tensors(folder / "teacher.safetensors", ConvNet(3, 32, width=4, depth=2).state_dict())
    from ldd import cli

    pictures = ["export", str(OLD / "dm"), "--format", "imagefolder", "--out", str(folder / "pictures")]
    assert cli.main(pictures) == 0
    torch.save(original_transformer.state(4), folder / "sit.pt")
    names = [f"thing-{number} thing" for number in range(original_transformer.ROWS - 1)]
    (folder / "names.txt").write_text("\n".join(names))
    write_prior_folder(folder / "prior", one_step=True)
    write_folder(folder / "few", {"digit-0": 12, "digit-1": 12})
    words = [
        word.replace("configs/", f"{ROOT}/configs/")
        for word in spelt([*_SMALL[2:], *_JUDGED], folder, folder)
    ]
    options = {word.removeprefix("--"): value for word, value in zip(words[::2], words[1::2], strict=True)}
    sweep = {"base": "quickstart", "axes": {"x": {"one": {}, "two": {}}}, "options": options, "seeds": [0]}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))


def spelt(words: Sequence[object], world: Path, out: Path) -> list[str]:
    """The words with folders in them."""
    return [str(word).replace("WORLD", str(world)).replace("OUT", str(out)) for word in words]


def made(folder: Path) -> dict[str, Any]:
    """What matters of the files in a folder: their bytes, without what tells of the clock; no leftovers."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.endswith(".tmp") and "scores" in path.parts:  # a cache that others share: an hour later
            continue
        assert not path.name.endswith((".tmp", ".old", ".lock", ".shards.jsonl")), path
        name = str(path.relative_to(folder))
        if {"logs", "previews"} & {*path.parts}:  # a version for each start; none where no step was left
            continue
        if path.is_dir() or path.suffix in (".ckpt", ".log", ".html", ".md") or path.name == "comparison.png":
            found[name] = None
        elif path.name == "evaluation.csv":
            found[name] = [line.split(",")[:7] for line in path.read_text().splitlines()]
        elif path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            found[name] = manifest["sha256"], manifest.get("step")
        elif path.suffix == ".pt":  # the name of the file beside it is in the archive
            found[name] = {key: str(value) for key, value in torch.load(path, weights_only=True).items()}
        elif path.name == "made.safetensors":  # costs, and the order of its metadata, are by chance
            found[name] = {key: value.tolist() for key, value in read_tensors(path).items()}
        elif {"evaluated", "cost", "scores"} & {*path.parts}:  # with the seconds of each
            found[name.rpartition("/")[0]] = None
        elif path.suffix == ".csv":
            found[name] = len(path.read_text().splitlines())
        elif path.suffix not in (".json", ".parquet", ".yaml") or path.name.endswith("made.parquet"):
            found[name] = sha256(path)
    return found
