"""Random `kill -9` while images are decoded or encoded: what is lost, and is the file the same in the end?

    python -m benchmarks.preparation --root ROOT [--json] [--kills 10] [--classes 3] [--size 64] [--seed 0]

ROOT is a folder of images (`train/CLASS/...`), for instance ImageNette's. Its training split is decoded into a cache,
and encoded by the autoencoder of the shipped prior. Each work is done once without a kill; every other time it is
killed at a moment drawn uniformly between its first image and the end of an unbroken run, then started again. The
final files are compared byte by byte, and each image that is decoded or encoded is counted. No timing is reported, so
a busy machine only makes it slower.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
KINDS = ("decoding", "encoding")


def decode(root: str, classes: int, size: int, folder: Path, log: int) -> None:
    """Decode the training split into `folder`; each image that is read is written to `log`."""
    from ldd.data import FolderSource, Subset
    from ldd.data.splits import load_split

    class Watched(FolderSource):
        def read(self, item):  # noqa: ANN001, ANN202
            os.write(log, f"{item.key}\n".encode())
            return super().read(item)

    source = Watched(root)
    chosen = Subset(source, [info.wnid for info in source.classes[:classes]])
    print("ready", flush=True)
    load_split(chosen, "train", size, str(folder))


def encode(root: str, classes: int, size: int, folder: Path, log: int) -> None:
    """Encode the training split, at the size of the shipped prior; each part of 256 is written to `log`."""
    import torch

    from ldd.data import FolderSource, Subset
    from ldd.data.splits import load_split
    from ldd.prior_training.latents import CHUNK, LatentCache, LatentViews, encode_views, fingerprint
    from ldd.priors import AutoencoderPrior

    source, prior = FolderSource(root), AutoencoderPrior("embedded:digits")
    chosen = Subset(source, [info.wnid for info in source.classes[:classes]])
    real = load_split(chosen, "train", prior.image_size, str(folder.with_name("decoded")))
    views = LatentViews(mirror=True)

    def parts(some: range):  # noqa: ANN202
        for number, part in zip(
            some, encode_views(prior.encode, real, views, torch.device("cpu"), some), strict=True
        ):
            os.write(log, f"{number} of {CHUNK}\n".encode())
            yield part

    shape = (len(real) * len(views), *prior.latent_shape)
    cache = LatentCache(folder, "benchmark", fingerprint(prior.autoencoder), views, shape, prior.image_size)
    print("ready", flush=True)
    cache.load(parts)


class Work:
    """One kind of preparation in a folder of its own."""

    def __init__(self, kind: str, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.log = folder, folder.with_name(f"{folder.name}.log")
        words = [kind, options.root, options.classes, options.size, folder, self.log]
        self.command = [
            sys.executable,
            "-m",
            "benchmarks.preparation",
            "--worker",
            json.dumps([*map(str, words)]),
        ]

    def start(self) -> subprocess.Popen[str]:
        """Start a process, and wait until the work itself begins."""
        process = subprocess.Popen(
            self.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"failed: {self.command}")
        return process

    def finish(self) -> None:
        """Go on to the end."""
        if self.start().wait():
            raise RuntimeError(f"failed: {self.command}")

    def made(self) -> Counter[str]:
        """How often each image was decoded, or each part encoded."""
        return Counter(self.log.read_text().splitlines())

    def files(self) -> dict[str, bytes]:
        """The cache as it is now, hidden files included."""
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}


def measure(kind: str, options: argparse.Namespace, place: Path) -> dict[str, object]:
    """Kill one kind of work again and again."""
    if kind == "encoding":
        Work(kind, place / "warm", options).finish()  # decodes its images
    whole = Work(kind, place / f"{kind}-whole", options)
    process = whole.start()
    began = time.monotonic()
    process.wait()
    seconds = time.monotonic() - began
    expected, draws = whole.files(), random.Random(options.seed)
    identical, again = 0, []
    for number in range(options.kills):
        work = Work(kind, place / f"{kind}-{number}", options)
        process = work.start()
        time.sleep(draws.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.wait()
        work.finish()
        identical += work.files() == expected
        again.append(sum(work.made().values()) - len(whole.made()))
    return {
        "kind": kind,
        "pieces": len(whole.made()),
        "kills": options.kills,
        "identical": identical,
        "again": again,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder of images")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--size", type=int, default=64, help="of the decoded images, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = [measure(kind, options, Path(place)) for kind in KINDS]
    for one in found:
        print(
            f"{one['kind']}: {one['pieces']} pieces, {one['kills']} kills, {one['identical']} identical files; pieces "
            f"done a second time, by kill: {one['again']}"
        )
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        kind, root, classes, size, folder, log = json.loads(sys.argv[2])
        descriptor = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        {"decoding": decode, "encoding": encode}[kind](
            root, int(classes), int(size), Path(folder), descriptor
        )
    else:
        main()
