"""Damaged and hostile files for every reader: each follows from its kind and number alone."""

import contextlib
import io
import json
import os
import random
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("yaml", "pt", "safetensors", "image", "scores", "run")
ODD = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**70, 0.5, -1.0, 1e300, float("nan"), float("inf"), "", "x", "a\x1b[31m",
    "\ud800",
    "$a_b$", "[red]", "../../etc/passwd", "/etc/passwd", "fuzz_trap.Run", "fuzz_trap:run", "os.system", "os.abort",
    "this", "sys.exit", "x" * 5000, [], {}, [[]], {"": {}}, ["x"] * 3, [0.1] * 3, {"class_path": "fuzz_trap.Run"},
]  # fmt: skip
TRAP = "from pathlib import Path\nclass Run:\n    pass\ndef run():\n    pass\n"
SEEN: list[str] = []
"""What was imported, started or connected since it was last cleared, see `watch`."""


def watch() -> None:
    """Note in `SEEN` what no reader may do, from now on."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        started = event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect")
        if started or (event == "import" and str(arguments[0]).partition(".")[0] in ("fuzz_trap", "this")):
            SEEN.append(f"{event} {arguments!r:.80}")

    sys.addaudithook(hook)


def changed(rng: random.Random, content: bytes) -> bytes:
    """Bytes with flips, cuts, insertions, repeats or numbers in the places of others."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[place % len(data)] = rng.randrange(256)
        elif kind == 1:
            del data[place : place + rng.choice((1, 4, 100, 10**6))]
        elif kind == 2:
            data[place:place] = rng.randbytes(rng.choice((1, 4, 30)))
        elif kind == 3:
            data[place : place + 4] = struct.pack(
                rng.choice("<>") + "I", rng.choice((0, 1, 2**15, 2**24, 2**31, 2**32 - 1))
            )
        elif kind == 4:
            other = rng.randrange(len(data) + 1)
            data[place:place] = data[other : other + rng.choice((8, 64, 512))]
        elif place < 60:
            data[place : place + 1] = bytes([rng.choice((0, 1, 127, 128, 255))])
    return bytes(data)


def replaced(rng: random.Random, tree: Any) -> Any:
    """A JSON value with another value in some place, without some key, or with an unknown one."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 2))):
        node = tree
        while isinstance(node, dict | list) and node:
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.3:
                break
            node = node[key]
        if not isinstance(node, dict | list) or not node:
            return rng.choice(ODD)
        if rng.random() < 0.8:
            node[key] = rng.choice(ODD)
        else:
            del node[key]
    return tree


def bomb(rng: random.Random) -> str:
    """YAML whose aliases, merge keys or brackets grow."""
    kind, wide, levels = rng.randrange(4), rng.randrange(2, 12), rng.randrange(2, 40)
    if kind == 3:
        return rng.choice(("[", "- ", "? ", "{a: ", "!!seq [", "&a [*a, ")) * rng.choice((10, 200, 20_000))
    lines = ["k0: &k0 " + ("{x: 1}" if kind else "[x]")]
    for level in range(1, levels):
        of = [f"*k{level - 1}"] * wide
        text = {
            0: f"[{','.join(of)}]",
            1: f"{{<<: [{','.join(of)}]}}",
            2: f"{{{','.join(f'a{i}: {one}' for i, one in enumerate(of))}}}",
        }
        lines.append(f"k{level}: &k{level} {text[kind]}")
    return "\n".join(lines)


class Maker:
    """Whole files of each kind, made once in a worker, and what damages and reads them."""

    def __init__(self, folder: Path) -> None:
        import numpy as np
        import torch
        from pruning_cases import table_of
        from small_world import SmallData, protocol_content, protocol_file, small_set
        from tiny_set import full_set

        from ldd.commands.check import check
        from ldd.evaluation import Report, Row
        from ldd.runs.history import record_command

        self.torch, self.np, self.folder = torch, np, folder
        self.protocol = protocol_content()
        (folder / "fuzz_trap.py").write_text(TRAP)
        sys.path.insert(0, str(folder))
        os.chdir(folder)
        self.set = full_set().save(folder / "whole")
        self.scores = table_of([0.5, 0.1], [0.3, 0.2]).save(folder / "whole.parquet").read_bytes()
        run = folder / "run"
        small_set(seed=3, config={"model": {"objective": {"class_path": "x.Y"}, "prior": {}}}).save(
            run / "distilled"
        )
        small_set(seed=9).save(run / "initial")
        rows = tuple(
            Row(4, name, net, net == "b", repeat, 7, 0.5, 1.5, "small")
            for name in ("distilled", "random_real")
            for net in ("a", "b")
            for repeat in range(2)
        )
        facts = {
            "test_images": 30,
            "cost": {"distilled": {"storage": {"bytes": 3}, "training": {"steps": 2}}},
        }
        Report(rows, {"small": "h" * 16}, facts).write(run)
        (run / "logs" / "version_0").mkdir(parents=True)
        (run / "logs" / "version_0" / "metrics.csv").write_text("step,train/loss\n0,5.0\n1,4.0\n")
        record_command(run, ["fit", "--config", "mine.yaml"])

        with contextlib.redirect_stdout(io.StringIO()):
            check(str(run), SmallData(), protocol=protocol_file(folder, epochs=2))
        self.run = run
        self.texts = [
            path.read_text() for path in sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))[:40]
        ]

    def yaml(self, rng: random.Random, place: Path) -> list[Callable[[], object]]:
        """Recipes, protocols and bombs, for every reader of YAML."""
        import yaml
        from jsonargparse import ArgumentParser

        from ldd.disk.files import read_json, read_yaml
        from ldd.priors.folder import read_licence
        from ldd.runs.verb import guard_yaml
        from ldd.students.protocol import Protocol
        from ldd.sweeps.file import Sweep

        kind = rng.randrange(4)
        if kind == 0:
            content = changed(rng, rng.choice(self.texts).encode())
        elif kind == 1:
            content = bomb(rng).encode()
        elif kind == 2:
            content = yaml.safe_dump(replaced(rng, self.protocol), allow_unicode=False).encode()
        else:
            content = json.dumps(
                replaced(rng, {"base": "a.yaml", "axes": {"x": {"a": {"b": 1}}}, "seeds": [0]})
            ).encode()
        path = place / "x.yaml"
        path.write_bytes(content)
        (place / "README.md").write_bytes(b"---\nlicense:\n" + content + b"\n---\n")
        guard_yaml()

        def parse() -> None:
            parser = ArgumentParser(exit_on_error=False)
            parser.add_argument("--config", action="config")
            parser.add_argument("--a", type=dict)
            try:
                parser.parse_args(["--config", str(path)])
            except UnicodeDecodeError:
                pass  # answered by run_verb
            except Exception as error:
                if type(error).__name__ != "ArgumentError":
                    raise

        def protocol() -> None:
            found = Protocol.load(path)
            found.peak_lr(type(self))
            found.factories()

        return [
            lambda: read_yaml(path),
            lambda: read_json(path),
            protocol,
            lambda: Sweep.load(path),
            lambda: read_licence(place),
            parse,
        ]

    def pt(self, rng: random.Random, place: Path) -> list[Callable[[], object]]:
        """Pickles with odd tensors and values, other zip archives, and damaged bytes."""
        torch = self.torch
        from ldd.importers import read_set
        from ldd.networks.pretrained import Classifier
        from ldd.priors.conversion.reading import read_state

        wide = rng.choice((1, 10, 1000))
        odd = [
            lambda: torch.zeros(1).expand(wide * 300, 3, 2000, 2000),
            lambda: torch.sparse_coo_tensor([[0], [0]], [1.0], (10**6, 10**6)),
            lambda: torch.empty(10**5, 10**5, device="meta"),
            lambda: torch.quantize_per_tensor(torch.zeros(6, 3, 8, 8), 0.1, 0, torch.qint8),
            lambda: torch.zeros(
                6, 3, 8, 8, dtype=rng.choice((torch.complex64, torch.bfloat16, torch.bool, torch.int64))
            ),
            lambda: torch.full((6, 3, 8, 8), rng.choice((float("nan"), float("inf"), 1e38, -1.0))),
            lambda: torch.zeros(
                rng.choice(((0,), (6,), (6, 3, 8), (6, 1, 8, 8), (6, 3, 8, 9), (0, 3, 8, 8)))
            ),
            lambda: rng.choice(ODD[:-1]),
        ]
        images, labels = torch.zeros(6, 3, 8, 8).byte(), torch.tensor([0, 0, 1, 1, 2, 2])
        content: Any = {
            "images": images,
            "labels": labels,
            "soft_labels": torch.full((6, 3), 1 / 3),
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "weights": torch.ones(6),
            "classes": [{"label": i, "id": i, "wnid": f"n{i}", "name": f"n{i}"} for i in range(3)],
        }
        for _ in range(rng.randrange(3)):
            content[rng.choice(list(content))] = rng.choice(odd)()
        if rng.random() < 0.3:
            content = rng.choice(
                (
                    {"data": [[content["images"], content["labels"]]]},
                    {"state_dict": content},
                    list(content.values()),
                )
            )
        path = place / "images.pt"
        try:
            torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.7)
        except (RuntimeError, NotImplementedError, AttributeError, TypeError, UnicodeError):
            path.write_bytes(b"")
        kind = rng.randrange(4)
        if kind < 2:
            path.write_bytes(changed(rng, path.read_bytes()))
        elif kind == 2 and zipfile.is_zipfile(path):
            archive = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
            with zipfile.ZipFile(path, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as out:
                for entry in archive.infolist():
                    inner = archive.read(entry)
                    out.writestr(entry.filename, changed(rng, inner) if rng.random() < 0.3 else inner)
        (place / "classes.txt").write_text("n0\nn1\nn2\n")
        return [
            lambda: read_set(path, classes=str(place / "classes.txt")),
            lambda: read_state(path),
            lambda: Classifier("resnet18", str(path))._read(),
        ]

    def safetensors(self, rng: random.Random, place: Path) -> list[Callable[[], object]]:
        """Tensors of a distilled set under other headers, with hashes that fit."""
        from ldd.artefact.set import DistilledSet
        from ldd.disk.files import read_tensors, sha256
        from ldd.priors.loading import load_tensor

        shutil.copytree(self.set, place / "set")
        path = rng.choice(sorted((place / "set").glob("*.safetensors")))
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        if rng.random() < 0.6:
            header = json.loads(content[8 : 8 + length])
            for _ in range(rng.choice((1, 2))):
                entry = rng.choice(list(header.values()))
                value = rng.choice(
                    (
                        ["F16", "F32", "F64", "I8", "I64", "U8", "BOOL", "BF16", "C64"],
                        [[0], [6, 3, 8, 8], [2**40], [1, 2**62]],
                        [[0, 1], [0, 2**40], [9, 3]],
                    )
                )
                entry[rng.choice(["dtype", "shape", "data_offsets", *entry])] = rng.choice([*value, *ODD])
            try:
                text = json.dumps(header).encode()
            except (ValueError, TypeError):
                text = b"{}"
            size = rng.choice((len(text), len(text), len(text), 0, 2**31, 2**63, len(text) + 1))
            path.write_bytes(struct.pack("<Q", size) + text + content[8 + length :])
        else:
            path.write_bytes(changed(rng, content))
        manifest = place / "set" / "manifest.json"
        facts = json.loads(manifest.read_text())
        facts["sha256"][path.name] = sha256(path)
        manifest.write_text(json.dumps(facts))
        return [
            lambda: read_tensors(path),
            lambda: load_tensor(path, "images"),
            lambda: DistilledSet.load(place / "set"),
        ]

    def image(self, rng: random.Random, place: Path) -> list[Callable[[], object]]:
        """Pictures of many formats, damaged, with other sizes in their headers, thin ones, and other files."""
        from PIL import Image

        from ldd.data.pictures import fit_to_square, read_file

        form = rng.choice(
            (
                "PNG",
                "JPEG",
                "BMP",
                "GIF",
                "TIFF",
                "WEBP",
                "PPM",
                "ICO",
                "TGA",
                "PCX",
                "JPEG2000",
                "EPS",
                "PDF",
            )
        )
        mode = rng.choice(("RGB", "RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "F"))
        size = rng.choice(((8, 8), (1, 1), (1, 5000), (5000, 1), (33, 17)))
        noise = self.np.frombuffer(rng.randbytes(size[0] * size[1] * 3), "u1").reshape(size[1], size[0], 3)
        buffer = io.BytesIO()
        with contextlib.suppress(Exception):
            Image.fromarray(noise).convert(mode).save(buffer, form)
        content = buffer.getvalue() or rng.randbytes(200)
        if form == "PNG" and rng.random() < 0.3:  # another size, with a checksum that fits
            import zlib

            head = (
                struct.pack(
                    ">II", rng.choice((1, 8, 10**4, 10**6, 2**31 - 1)), rng.choice((1, 8, 10**4, 6 * 10**7))
                )
                + content[24:29]
            )
            content = content[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + content[33:]
        elif rng.random() < 0.8:
            content = changed(rng, content)
        path = place / rng.choice(("x.png", "x.jpg", "x.tif", "x.ppm"))
        path.write_bytes(content)
        return [lambda: fit_to_square(read_file(path), 64)]

    def scores_(self, rng: random.Random, place: Path) -> list[Callable[[], object]]:
        """Parquet files with other columns, other metadata, damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from ldd.data import ScoreTable

        path = place / "scores.parquet"
        if rng.random() < 0.5:
            path.write_bytes(changed(rng, self.scores))
            return [lambda: ScoreTable.load(path)]
        rows = pq.read_table(io.BytesIO(self.scores))
        metadata = {name.decode(): value.decode() for name, value in rows.schema.metadata.items()}
        values = [
            pa.array([1.0, float("nan"), 2.0, 0.0]),
            pa.array([1, 2, 3, 2**62]),
            pa.array(["../a", "/etc/passwd", "", "x"]),
            pa.nulls(4),
            pa.array([True, None, False, True]),
            pa.array([[1], [2], [], None]),
            pa.array([b"\xff"] * 4),
        ]
        for _ in range(rng.choice((1, 2, 3))):
            if rng.random() < 0.6:
                which = rng.randrange(rows.num_columns)
                rows = rows.set_column(
                    which, rng.choice([rows.column_names[which], "kept", "rank", "fuzz"]), rng.choice(values)
                )
            else:
                metadata[rng.choice([*metadata, "x"])] = (
                    str(rng.choice(ODD)).encode("utf-8", "ignore").decode()
                )
        pq.write_table(rows.replace_schema_metadata(metadata), path)
        return [lambda: ScoreTable.load(path)]

    def run_(self, rng: random.Random, place: Path) -> list[Callable[[], object]]:
        """A run's folder with anything in any of its files: values, links, pipes, holes."""
        from ldd.artefact.set import DistilledSet
        from ldd.evaluation import Report
        from ldd.report import read_runs, write_report
        from ldd.runtime.classes import canonical

        run = place / "run"
        shutil.copytree(self.run, run)
        files = [path for path in sorted(run.rglob("*")) if path.is_file()]
        for _ in range(rng.choice((1, 1, 2))):
            path = rng.choice(files)
            kind = rng.randrange(8)
            if not path.is_file() or path.is_symlink() or path.stat().st_size > 10**7:
                continue
            if path.suffix == ".json" and kind < 5:
                with contextlib.suppress(ValueError):  # changed before, so that it is no JSON any more
                    path.write_text(json.dumps(replaced(rng, json.loads(path.read_text()))))
            elif path.suffix == ".csv" and kind < 5:
                lines = [line.split(",") for line in path.read_text().splitlines()]
                row = rng.choice(lines)
                row[rng.randrange(len(row))] = str(rng.choice(ODD)).encode("utf-8", "ignore").decode()
                path.write_text("\n".join(map(",".join, lines)))
            elif kind == 5:
                path.unlink()
                path.symlink_to(
                    rng.choice(("/etc/passwd", "/dev/zero", "/proc/self/environ", ".", "nowhere", path.name))
                )
            elif kind == 6:
                path.unlink()
                os.mkfifo(path)
            elif kind == 7:
                with open(path, "r+b") as opened:
                    opened.truncate(rng.choice((0, 10, 2**33, 2**42)))
            else:
                path.write_bytes(changed(rng, path.read_bytes()))

        def whole() -> None:
            found = read_runs([str(run)])
            [canonical(name) for name in found[0].manifest.seen_networks]
            if rng.random() < 0.5:
                write_report(found, place / "page.html")

        return [whole, lambda: Report.read(run), lambda: DistilledSet.load(run / "initial")]

    def inputs(self, kind: str, number: int, place: Path) -> list[Callable[[], object]]:
        """Write one input; return its readers."""
        make = getattr(self, kind if kind in ("yaml", "pt", "safetensors", "image") else f"{kind}_")
        found: list[Callable[[], object]] = make(random.Random(f"{kind} {number}"), place)
        return found
