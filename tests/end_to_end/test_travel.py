"""Nothing that travels tells where its maker keeps files, or who that is: every byte of every artefact is searched."""

import io
import tarfile
import zipfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from small_world import protocol_file
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


def test_no_byte_of_what_travels_tells_who_made_it_or_where(made):
    run = made / "runs" / "one"
    kept = ("checkpoints", "logs", "config.yaml")  # the run's own, by which it is gone on with
    own = [path for name in ("one", "prior") for path in (made / "runs" / name).rglob("*")]
    travelling = [path for path in own if path.relative_to(made / "runs").parts[1] not in kept]
    travelling += (made / "out").rglob("*")
    files = [path for path in travelling if path.is_file()]
    assert {run / "distilled" / "manifest.json", made / "out" / "page.html"} <= {*files}
    assert len(files) > 40
    tells = [
        path.relative_to(made)
        for path in files
        for content in contents(path)
        if WHO.encode() in content or TOKEN.encode() in content or str(made.parent).encode() in content
    ]
    assert tells == []
    assert WHO in (run / "config.yaml").read_text()


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
