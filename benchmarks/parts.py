"""Preparation in parts against one process: are the files the same, and what does it cost?

    python -m benchmarks.parts [--json] [--parts 2,4] [--images 6000] [--kinds decode,score]

Synthetic JPEG files are decoded (`latentdd prepare`), scored by a classifier with random weights (`prune`), encoded by
the autoencoder of the shipped prior (`prior train --part`), and every crop of a small set is labelled (`label-crops`):
by one process, and by several of one thread at once, one for each part, of which the last joins them. What each leaves
is compared by SHA-256; of the labels' file the tensors, since its header tells seconds. Processes are forked from one
that has imported everything. With fewer cores than processes the seconds say little; CPU seconds do.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.queues import Queue
from pathlib import Path

KINDS = ("decode", "score", "encode", "label")
PROTOCOL = {
    "id": "taught",
    "epochs": 48,
    "full_data_epochs": 2,
    "batch_size": 32,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "augmentations": [],
    "labels": "teacher",
    "cutmix": 1.0,
    "networks": {"ConvNet": {"class_path": "ldd.networks.ConvNet"}},
}
VIEWS = {"crop_scale": [0.5, 1.0], "flip": True}


def write_images(root: Path, count: int) -> None:
    """Write JPEG files of noise on colours, of two classes that the shipped prior knows."""
    import numpy as np
    from PIL import Image

    draws = np.random.default_rng(0)
    for split, number in (("train", count // 2), ("val", 10)):
        for label, name in enumerate(("digit-0", "digit-1")):
            (root / split / name).mkdir(parents=True)
            for place in range(number):
                pixels = draws.integers(0, 90, (110, 120, 3), dtype=np.uint8)
                pixels[..., label] += 120
                Image.fromarray(pixels).save(root / split / name / f"{place:05d}.jpg")


def write_set(folder: Path) -> None:
    """Write a set of 60 images, a teacher's weights and a protocol that has one."""
    import torch
    import yaml
    from safetensors.torch import save_file
    from torchvision.models import get_model

    from ldd import DistilledSet
    from ldd.data import DistillationData, FolderSource
    from ldd.networks import ConvNet
    from ldd.runtime.seeding import seeded

    data = DistillationData(FolderSource, str(folder / "images"), image_size=32)
    images = torch.randint(
        0, 256, (60, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    DistilledSet.from_images(images, torch.arange(60) // 30, data.classes).save(folder / "set")
    with seeded(0):
        save_file(ConvNet(2, 32, width=64).state_dict(), folder / "teacher.safetensors")
        save_file(
            get_model("mobilenet_v3_small", num_classes=2).state_dict(), folder / "classifier.safetensors"
        )
    (folder / "taught.yaml").write_text(yaml.safe_dump({**PROTOCOL, "views": VIEWS}))


def command(kind: str, folder: Path, out: Path) -> list[str]:
    """Return the words of the command of a kind, which writes below `out`."""
    data = ["--data.source=ldd.data.FolderSource", f"--data.root={folder / 'images'}"]
    small = [*data, "--data.image_size=32"]
    return {
        "decode": ["prepare", *data, "--data.image_size=64", f"--data.cache_dir={out}"],
        "score": [
            *("prune", *small, "--pruner=configs/pruner/loss.yaml", "--pruner.classifier=mobilenet_v3_small"),
            *(f"--pruner.weights={folder / 'classifier.safetensors'}", "--pruner.resize=72", "--pruner.crop=64"),
            *("--pruner.precision=float32", "--pruner.device=cpu", f"--pruner.cache_dir={out}.scores"),
            *("--pruner.keep=0.5", f"--out={out / 'scores.parquet'}"),
        ],
        "encode": [
            *("prior", "train", *small, f"--data.cache_dir={folder / 'decoded'}"),
            *("--model.autoencoder=embedded:digits", "--model.unet.channels=[8,16]", "--model.unet.norm_groups=4"),
            *("--model.unet.attention=[false,true]", "--model.unet.middle=false", "--model.mirror=true"),
            *(f"--model.cache_dir={out}", "--trainer.accelerator=cpu", "--trainer.max_steps=1"),
        ],
        "label": [
            *("label-crops", str(folder / "set"), *small, f"--data.cache_dir={folder / 'decoded'}"),
            "--labels=ldd.evaluation.NetworkLabels",
            *(f"--labels.weights={folder / 'teacher.safetensors'}", "--labels.network=ldd.networks.ConvNet"),
            *("--labels.network.width=64", f"--protocol={folder / 'taught.yaml'}"),
            f"--out={out / 'crops.safetensors'}",
        ],
    }[kind]  # fmt: skip


def run(words: Sequence[str], log: Path, results: "Queue[tuple[int, float]]") -> None:
    """Run a command in this forked process, and tell its code and its CPU seconds."""
    import torch

    from ldd import cli

    torch.set_num_threads(1)
    with log.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
        started = time.process_time()
        with contextlib.suppress(SystemExit):
            results.put((cli.main(words), time.process_time() - started))


def at_once(commands: Sequence[list[str]], log: Path) -> tuple[float, float]:
    """Run commands at once; return seconds until the last has ended, and CPU seconds of all."""
    forked = multiprocessing.get_context("fork")
    results: Queue[tuple[int, float]] = forked.Queue()
    logs = [log.with_name(f"{log.name}.{number}") for number in range(len(commands))]
    processes = [
        forked.Process(target=run, args=(*each, results)) for each in zip(commands, logs, strict=True)
    ]
    started = time.perf_counter()
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - started
    found = [results.get(timeout=10) for _ in processes]
    assert not any(code for code, _ in found), [path.read_text()[-800:] for path in logs]
    return seconds, sum(cpu for _, cpu in found)


def left(out: Path) -> Iterator[tuple[str, str]]:
    """Yield names and hashes of what was left; of labels the tensors' alone."""
    for path in sorted(out.iterdir()):
        if path.name.endswith("commands.json"):
            continue
        content = path.read_bytes()
        if path.name == "crops.safetensors":
            content = content[8 + int.from_bytes(content[:8], "little") :]
        yield path.name, hashlib.sha256(content).hexdigest()


def measure(kind: str, folder: Path, numbers: Sequence[int]) -> dict[str, object]:
    """Return seconds and CPU seconds of one process and of several, and whether they leave the same."""
    found: dict[str, object] = {}
    expected = None
    for number in (1, *numbers):
        out = folder / f"{kind}-{number}"
        out.mkdir()
        words = command(kind, folder, out)
        os.environ["HOME"] = f"{out}.home"  # in which hashes are kept
        alone = number == 1 and kind != "encode"  # which would train, too
        parts = [words] if alone else [[*words, f"--part={one + 1}/{number}"] for one in range(number)]
        seconds, cpu = at_once(parts, folder / f"{kind}-{number}.log")
        files = dict(left(out))
        expected = files if expected is None else expected
        found |= {f"{kind}_{number}_seconds": seconds, f"{kind}_{number}_cpu_seconds": cpu}
        found[f"{kind}_{number}_equal"] = files == expected and bool(files)
    return found


def main() -> None:
    """Measure all kinds and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="the last line is one flat JSON object")
    parser.add_argument("--parts", default="2,4", help="numbers of processes, separated by commas")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of work, separated by commas")
    parser.add_argument("--images", type=int, default=6000, help="of the training split")
    chosen = parser.parse_args()
    for name in ("label_crops", "prepare", "prior.train", "prune"):
        importlib.import_module(f"ldd.commands.{name}")
    numbers, found = [int(number) for number in chosen.parts.split(",")], dict[str, object]()
    os.chdir(Path(__file__).parent.parent)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "home")
        write_images(folder / "images", chosen.images)
        write_set(folder)
        for kind in chosen.kinds.split(","):
            if kind in ("encode", "label") and not (folder / "decoded").exists():
                at_once(
                    [[*command("decode", folder, folder / "decoded"), "--data.image_size=32"]], folder / "log"
                )
            measured = measure(kind, folder, numbers)
            found |= measured
            print(
                kind,
                {key: round(v, 1) if isinstance(v, float) else v for key, v in measured.items()},
                flush=True,
            )
    if chosen.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
