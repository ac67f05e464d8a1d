"""Nothing that travels tells where its maker keeps files, or who that is: every byte of every artefact is searched."""

import io
import socket
import tarfile
import zipfile

import numpy as np
import original_transformer
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from small_world import protocol_content, protocol_file
from tiny_prior import write_prior_folder

from ldd import cli
from ldd.artefact.identity import identify
from ldd.artefact.set import DistilledSet
from ldd.distiller.synthesis import prior_of
from ldd.errors import UserError

WHO = "zaphodbeeblebrox"
TOKEN = "hf_abcdefghijklmnopqrstuvwxyz0123"
NETWORK = "{narrow: {class_path: ldd.networks.ConvNet, init_args: {width: 4, depth: 2}}}"


def latentdd(*words):
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as end:
        code = end.code
    assert code == 0, words


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Home, data, caches, weights and runs, each below a folder with the user's name; the settings name them all."""
    home = tmp_path_factory.mktemp("home") / WHO
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "XDG_CACHE_HOME"):
            patch.setenv(name, str(home))
        for name in ("USER", "LOGNAME", "USERNAME"):
            patch.setenv(name, WHO)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setattr(socket, "gethostname", lambda: f"{WHO}-desk")
        rng = np.random.default_rng(0)
        for split, count in (("train", 12), ("val", 4)):
            for name in ("digit-0", "digit-1"):
                folder = home / "pictures" / split / name
                folder.mkdir(parents=True)
                for number in range(count):
                    image = Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8))
                    image.save(folder / f"{number}.png")
        data = {"source": "ldd.data.FolderSource", "root": str(home / "pictures"), "image_size": 32}
        (home / "data.yaml").write_text(yaml.safe_dump({**data, "cache_dir": "~/decoded"}))
        write_prior_folder(home / "weights" / "mine")
        yield home


@pytest.fixture(scope="module")
def made(home):
    """The folder of a run with its evaluation, table, exports, page, and a prior."""
    run, out, data = home / "runs" / "one", home / "out", ("--data", home / "data.yaml")
    quiet = ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu")
    pruner = ("--pruner", "ldd.data.RandomPruner", "--pruner.keep", 0.5)
    latentdd(
        "prune", *data, *pruner, "--out", home / "out" / "scores.parquet", "--lists", home / "out" / "lists"
    )
    protocol = protocol_file(home, epochs=2)
    latentdd(
        *("fit", "--config", "configs/quickstart.yaml", *data, "--trainer.default_root_dir", run, *quiet),
        *("--model.prior.path_or_hub_id", home / "weights" / "mine", "--model.prior.num_steps", 2),
        *("--model.objective.real_batch", 4, "--model.objective.network.width", 4, "--trainer.max_steps", 1),
        *("--data.pruner", "ldd.data.TablePruner", "--data.pruner.scores", home / "out" / "scores.parquet"),
        *(
            "--data.pruner.keep",
            0.9,
            "--data.pruner.cache_dir",
            home / "scores",
            "--model.images_per_class",
            1,
        ),
        *("--evaluation.protocol", protocol, "--evaluation.networks", NETWORK, "--evaluation.repeats", 1),
        *("--evaluation.num_workers", 1),
    )
    evaluation = ("--networks", NETWORK, "--repeats", 1, "--num_workers", 1, "--protocol", protocol)
    latentdd("evaluate", run, *data, *evaluation, "--baselines", "prior_samples", "--out", out / "evaluated")
    latentdd("check", run)
    for form in ("imagefolder", "pt", "parquet", "webdataset"):
        latentdd("export", run, "--format", form, "--out", out / form)
    for form in ("parquet", "webdataset"):
        latentdd("export", run, "--format", form, "--out", out / f"hub_{form}", "--push_to_hub", "some/set")
    latentdd("report", run, "--out", out / "page.html")
    latentdd(
        *("prior", "train", "--config", "configs/prior_training/digits.yaml", *data, *quiet),
        *("--trainer.default_root_dir", home / "runs" / "prior", "--trainer.max_steps", 2),
        *("--model.autoencoder_steps", 1, "--model.views", 1, "--model.augmentation", "null"),
        *("--model.cache_dir", "~/latents", "--samples.every_n_steps", 0),
    )
    latentdd(
        "prior",
        "sample",
        home / "runs" / "prior" / "prior",
        *data,
        "--out",
        out / "samples",
        "--num-steps",
        2,
    )
    return home


@pytest.fixture(scope="module")
def others(made):
    """What is made of a run's set, by several runs, or of other programs' files: `out` of everything in `made`."""
    home, run, out = made, made / "runs" / "one", made / "others"
    data, quick = ("--data", home / "data.yaml"), ("--epochs", 1, "--progress", "false")
    network = ("--network", "ldd.networks.ConvNet", "--network.width", 4, "--network.depth", 2)
    (home / "taught.yaml").write_text(
        yaml.safe_dump(
            protocol_content(id="taught", epochs=2, labels="teacher", full_data_epochs=2, temperature=4)
        )
    )
    small, taught = ("--protocol", home / "small.yaml"), ("--protocol", home / "taught.yaml")
    latentdd("train", run, *network, *small, *data, "--out", out / "net.safetensors")
    labels = ["--labels", "ldd.evaluation.NetworkLabels", "--labels.weights", out / "net.safetensors"]
    labels += [
        word.replace("--network", "--labels.network") if isinstance(word, str) else word for word in network
    ]
    curve = ("--curve", out / "curve", *small, "--repeats", 1, "--num_workers", 1)
    latentdd("label", run, *data, *labels, *curve, "--out", out / "labelled")
    latentdd("label-crops", run, *data, *labels, *taught, "--out", out / "crops.safetensors")
    latentdd("export", out / "labelled", "--format", "parquet", "--out", out / "exported")
    latentdd("import", home / "out" / "imagefolder", *data, "--out", out / "imported")
    latentdd("experts", *data, *network, *quick, "--num_experts", 1, "--out", out / "experts")
    tiny = ("--model.objective.real_batch", 4, "--model.objective.network.width", 4, "--trainer.max_steps", 1)
    tiny += ("--model.prior.path_or_hub_id", home / "weights" / "mine", "--model.prior.num_steps", 1)
    tiny += ("--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", *data)
    judged = ("--evaluation.protocol", home / "small.yaml", "--evaluation.repeats", 1)
    judged += ("--evaluation.baselines", "random_real", "--evaluation.num_workers", 1)
    federation = ("federate", "--config", "configs/quickstart.yaml", "--subtasks", 2, *tiny, *judged)
    latentdd(*federation, "--out", out / "federation")
    latentdd("report", out / "federation", run, "--out", out / "page.html")
    options = {word.removeprefix("--"): str(value) for word, value in zip(tiny[::2], tiny[1::2], strict=True)}
    options |= {
        word.removeprefix("--"): str(value) for word, value in zip(judged[::2], judged[1::2], strict=True)
    }
    sweep = {"base": "quickstart", "axes": {"x": {"one": {}}}, "options": options, "seeds": [0]}
    (home / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    latentdd("sweep", "--config", home / "sweep.yaml", "--out", out / "sweep")
    torch.save(original_transformer.state(4), home / "dit.pt")
    names = [f"digit-{number}" for number in range(original_transformer.ROWS - 1)]
    (home / "names.txt").write_text("\n".join(f"{name} {name}" for name in names))
    latentdd(
        *("prior", "convert", home / "dit.pt", "--form", "sit", "--heads", original_transformer.HEADS),
        *("--vae", home / "weights" / "mine" / "vae", "--class-names", home / "names.txt"),
        *("--out", out / "converted"),
    )
    return out


def contents(path):
    """Bytes of a file, and of whatever is packed into it."""
    whole = path.read_bytes()
    yield whole
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        yield repr(table.schema.metadata).encode() + repr(pq.read_metadata(path).metadata).encode()
        yield str(table.to_pylist()).encode()
    elif path.suffix == ".tar":
        with tarfile.open(path) as archive:
            yield repr([member.get_info() for member in archive]).encode()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            yield b"".join(archive.read(name) for name in archive.namelist())


OWN = {"checkpoints", "logs", "ranks", "config.yaml", "cell.json", "federation.json", "output.log"}
"""What a run, a cell or a federation goes on by, and what it printed: they stay where they are."""


def tells(place, files):
    """The files that tell of their maker."""
    words = (WHO.encode(), TOKEN.encode(), str(place.parent).encode())
    return [
        path.relative_to(place)
        for path in files
        for content in contents(path)
        if any(word in content for word in words)
    ]


def test_no_byte_of_what_travels_tells_who_made_it_or_where(made):
    run = made / "runs" / "one"
    own = [path for name in ("one", "prior") for path in (made / "runs" / name).rglob("*")]
    travelling = [path for path in own if path.relative_to(made / "runs").parts[1] not in OWN]
    travelling += (made / "out").rglob("*")
    files = [path for path in travelling if path.is_file()]
    assert {run / "distilled" / "manifest.json", made / "out" / "page.html"} <= {*files}
    assert len(files) > 40
    assert tells(made, files) == []
    assert WHO in (run / "config.yaml").read_text()


@pytest.mark.slow
def test_no_byte_of_what_is_made_of_sets_and_by_several_runs_tells_it_either(made, others):
    files = [path for path in others.rglob("*") if path.is_file() and not OWN & {*path.parts}]
    there = {path.relative_to(others).parts[0] for path in files}
    assert {"net.safetensors", "labelled", "curve", "crops.safetensors", "exported", "imported"} <= there
    assert {"experts", "federation", "page.html", "sweep", "converted"} <= there
    assert {others / "sweep" / "sweep.csv", others / "federation" / "evaluation.json"} <= {*files}
    assert tells(made, files) == []
    assert WHO in (others / "federation" / "config.yaml").read_text()


def test_the_prior_is_found_by_the_run_and_by_its_name_beside_the_set(made, tmp_path):
    run = made / "runs" / "one"
    distilled = DistilledSet.load(run)
    assert distilled.manifest.config["model"]["prior"]["init_args"]["path_or_hub_id"] == "mine"
    assert distilled.manifest.config["data"]["root"] == "ROOT"
    assert distilled.manifest.config["data"]["cache_dir"] == "CACHE"
    expected = prior_of(distilled)
    away = DistilledSet.load(distilled.save(tmp_path / "away"))
    with pytest.raises(UserError, match=r"no such folder.*under its own name next to"):
        prior_of(away)
    (tmp_path / "mine").symlink_to(made / "weights" / "mine")
    assert identify(prior_of(away)) == identify(expected) == distilled.manifest["prior"]
