"""Short runs of every kind, and what they leave behind as numbers and hashes.

`python tests/helpers/reference.py FOLDER` runs all of them in FOLDER and prints what they gave as JSON, for
`reference.json` beside this file. A refactor must leave every entry as it is.
"""

import csv
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
QUICK = ("--config", CONFIGS / "ld3m_digits.yaml")
NO_BAR = ("--trainer.enable_progress_bar", "false")
UNJUDGED = ("--trainer.limit_val_batches", 0)
THREE = ("--data.subset", '["digit-0", "digit-1", "digit-7"]')
FOUR = ("--data.subset", '["digit-0", "digit-1", "digit-4", "digit-7"]')
NARROW = '{"class_path": "ldd.networks.ConvNet", "init_args": {"width": 4, "depth": 2}}'
STUDENT = json.dumps({"narrow": json.loads(NARROW)})
SHORT_CHAIN = ("--model.prior.num_steps", 2, "--model.chunk_size", 4, "--model.checkpointing", "never")
EXPERTS = ("--experts.num_experts", 2, "--experts.epochs", 2, "--experts.batch_size", 64)
EVALUATION = (
    *("--evaluation.networks", STUDENT, "--evaluation.repeats", 1, "--evaluation.num_workers", 1),
    *("--evaluation.protocol", "protocol.yaml"),
)
PROTOCOL = {
    "id": "reference",
    "epochs": 3,
    "full_data_epochs": 2,
    "batch_size": 32,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "augmentations": ["crop", "color"],
    "networks": {"narrow": json.loads(NARROW)},
}


def fit(folder: str, *options: object, steps: int = 4) -> list[object]:
    """Arguments of `latentdd fit` in a folder, with a checkpoint in the middle."""
    own = (
        "--trainer.max_steps",
        steps,
        "--trainer.default_root_dir",
        folder,
        "--checkpoint.every_n_steps",
        2,
    )
    return ["fit", *options, *own, *NO_BAR]


RUNS: dict[str, list[object]] = {
    "dm": fit("dm", *QUICK, *THREE, *SHORT_CHAIN, "--model.objective.network.width", 8, *EVALUATION),
    "dm_pruned": fit(
        "dm_pruned",
        *(*QUICK, *THREE, *SHORT_CHAIN, "--model.objective.network.width", 8, *UNJUDGED),
        *("--data.pruner", CONFIGS / "pruner" / "el2n.yaml", "--data.pruner.networks", 1),
        *("--data.pruner.training.network.width", 4, "--data.pruner.keep", 0.5),
        steps=2,
    ),
    "dc": fit(
        "dc",
        *(
            *QUICK,
            *THREE,
            *SHORT_CHAIN,
            *UNJUDGED,
            "--model.objective",
            CONFIGS / "objective" / "gradient.yaml",
        ),
        *("--model.objective.real_batch", 8, "--model.objective.network.width", 8),
        steps=2,
    ),
    "experts": [
        *("experts", "--config", CONFIGS / "experts" / "digits.yaml", *THREE, "--network.width", 8),
        *("--num_experts", 2, "--epochs", 3, "--out", "recording"),
    ],
    "mtt": fit(
        "mtt",
        *(
            *QUICK,
            *THREE,
            *SHORT_CHAIN,
            *UNJUDGED,
            "--model.objective",
            CONFIGS / "objective" / "trajectory.yaml",
        ),
        *("--model.objective.network.width", 8, "--model.objective.trajectories", "recording"),
        *("--model.objective.max_start_epoch", 1, "--model.objective.expert_epochs", 1),
        *("--model.objective.syn_steps", 3),
        steps=3,
    ),
    "d3": fit(
        "d3",
        *(
            "--config",
            CONFIGS / "d3_digits.yaml",
            *THREE,
            *EXPERTS,
            *EVALUATION,
            "--model.images_per_class",
            2,
        ),
        *("--config", "d3.yaml"),
        steps=3,
    ),
    "prune": [
        *(
            "prune",
            "--data",
            CONFIGS / "data" / "digits.yaml",
            "--pruner",
            CONFIGS / "pruner" / "forgetting.yaml",
        ),
        *("--pruner.training.network.width", 4, "--pruner.training.epochs", 2, "--out", "scores.parquet"),
    ],
    "dm_table": fit(
        "dm_table",
        *(*QUICK, *SHORT_CHAIN, "--model.objective.network.width", 8, *UNJUDGED),
        *("--data.pruner", CONFIGS / "pruner" / "stratified.yaml", "--data.pruner.scores", "scores.parquet"),
        *("--data.pruner.keep", 0.3, "--data.pruner.strata", 5),
        steps=2,
    ),
    "federation": [
        *(
            "federate",
            *QUICK,
            *FOUR,
            "--model.prior",
            CONFIGS / "prior" / "pixel.yaml",
            "--trainer.max_steps",
            2,
        ),
        *("--model.objective.init_args.network.init_args.width", 8, "--checkpoint.every_n_steps", 1, *NO_BAR),
        *(*EVALUATION, "--subtasks", 2, "--out", "federated"),
    ],
    "prior": [
        *("prior", "train", "--config", CONFIGS / "prior_training" / "digits.yaml", "--trainer.max_steps", 5),
        *(
            "--model.autoencoder_steps",
            3,
            "--model.views",
            1,
            "--trainer.default_root_dir",
            "prior_run",
            *NO_BAR,
        ),
        *("--samples.every_n_steps", 100, "--checkpoint.every_n_steps", 3),
    ],
    "evaluate": [
        *(
            "evaluate",
            "dm",
            "--data",
            CONFIGS / "data" / "digits.yaml",
            *THREE,
            "--protocol",
            "protocol.yaml",
        ),
        *("--networks", STUDENT, "--repeats", 1, "--num_workers", 1, "--out", "evaluation"),
        *("--baselines", "random_real,nearest_real,random_real_steps,prior_samples", "--budgets", "[1]"),
    ],
    "label": [
        *("label", "d3", "--data", CONFIGS / "data" / "digits.yaml", *THREE, "--out", "labelled"),
        *("--labels", "labels.yaml", "--num_workers", 1),
    ],
    "export": ["export", "dm", "--format", "imagefolder", "--out", "pictures"],
    "import": [
        *("import", "pictures", "--data", CONFIGS / "data" / "digits.yaml", *THREE, "--out", "imported"),
    ],
    "sample": [
        "prior",
        "sample",
        "embedded:digits",
        "--per-class",
        1,
        "--num-steps",
        2,
        "--out",
        "drawn.png",
    ],
}
"""Name -> arguments of `latentdd`, in the order in which they need each other."""


def prepare(folder: Path) -> None:
    """Write the files that the commands name."""
    d3 = {
        "model": {
            "prior": {
                "class_path": "ldd.priors.DeconvolutionPrior",
                "init_args": {
                    "size": "small",
                    "image_size": 32,
                    "preset": "corrected",
                    "width": 8,
                    "latent_width": 4,
                },
            },
            "objective": {
                "class_path": "ldd.objectives.Alternating",
                "init_args": {
                    "objectives": [
                        {
                            "class_path": "ldd.objectives.TrajectoryMatching",
                            "init_args": {
                                "trajectories": "d3_experts",
                                "lr_latents": 0.1,
                                "lr_spread": 0.1,
                                "lr_decoder": 3.0e-3,
                                "expert_epochs": 1,
                                "max_start_epoch": 1,
                                "syn_steps": 2,
                                "batch_syn": 4,
                                "step_size": 0.01,
                                "lr_step_size": 1.0e-6,
                                "augmentation": [],
                                "unroll": "full",
                                "network": json.loads(NARROW),
                            },
                        },
                        {
                            "class_path": "ldd.objectives.MaximumMeanDiscrepancy",
                            "init_args": {
                                "trajectories": "d3_experts",
                                "samples": 4,
                                "lr_latents": 0.1,
                                "lr_spread": 0.1,
                                "lr_decoder": 3.0e-3,
                                "network": json.loads(NARROW),
                            },
                        },
                    ]
                },
            },
            "labels": expert_labels(),
        }
    }
    for name, content in (("d3.yaml", d3), ("labels.yaml", expert_labels()), ("protocol.yaml", PROTOCOL)):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML


def expert_labels() -> dict[str, object]:
    """Soft labels by the first expert of the D3 run."""
    read = {"trajectories": "d3_experts", "network": json.loads(NARROW), "epoch": 2}
    return {"class_path": "ldd.evaluation.ExpertLabels", "init_args": read}


def run(name: str, folder: Path) -> None:
    """Run one command in a folder that `prepare` has filled."""
    from ldd import cli

    os.chdir(folder)
    sys.argv = ["latentdd"]
    code = cli.main([str(argument) for argument in RUNS[name]])
    assert code == 0, f"{name} ended with {code}"


def results(folder: Path) -> dict[str, object]:
    """Losses, accuracies and hashes of all that the commands left in `folder`, by path."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            found[name] = hash_of(load_file(path))
        elif path.name == "metrics.csv":
            found[name] = [
                value for row in rows_of(path) for key, value in row.items() if key.startswith("train/")
            ]
        elif path.name == "evaluation.csv":
            found[name] = [
                [row[key] for key in ("set", "network", "seed", "accuracy")] for row in rows_of(path)
            ]
        elif path.name == "manifest.json" and "distilled" in name:
            found[name] = lasting(json.loads(path.read_text()))
        elif path.suffix == ".png" and "pictures" in name:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        elif path.suffix == ".parquet" and "cost" not in name:
            found[name] = table_hash(path)
    return found


def hash_of(tensors: dict[str, torch.Tensor]) -> str:
    """Of names, shapes, types and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def table_hash(path: Path) -> str:
    """Of a Parquet table's values."""
    import pyarrow.parquet as pq

    columns = {name: values for name, values in pq.read_table(path).to_pydict().items() if name != "seconds"}
    return hashlib.sha256(json.dumps(columns, sort_keys=True, default=str).encode()).hexdigest()[:16]


def lasting(manifest: dict[str, object]) -> dict[str, object]:
    """What of a manifest does not tell of this machine, its clock or its folders."""
    names = (
        "step",
        "seed",
        "classes",
        "normalisation",
        "licences",
        "seen_networks",
        "pruning",
        "labels",
        "format",
    )
    kept = {name: manifest[name] for name in names if name in manifest}
    return json.loads(json.dumps(kept, sort_keys=True).replace(str(ROOT), "ROOT"))


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a CSV file by column."""
    with path.open(newline="") as file:
        yield from csv.DictReader(file)


def machine() -> str:
    """What the last bits of a result depend on beside the code."""
    model = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ""
    )
    return f"{platform.machine()}, {model.partition(':')[2].strip()}, torch {torch.__version__}"


def main(arguments: Sequence[str]) -> None:
    """Run all, or those named after the folder, and print what they gave."""
    folder = Path(arguments[0]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.environ["HOME"] = str(folder / "home")
    prepare(folder)
    names = arguments[1:] or list(RUNS)
    stdout, sys.stdout = sys.stdout, sys.stderr
    for name in names:
        print(f"--- {name}", flush=True)
        run(name, folder)
    sys.stdout = stdout
    print(json.dumps({"machine": machine(), "results": results(folder)}, indent=1, sort_keys=True))


if __name__ == "__main__":
    main(sys.argv[1:])
