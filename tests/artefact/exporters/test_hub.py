"""Uploads to a data-set hub: what arrives there is the export and a card that says what the manifest says."""

import datasets
import pytest
import torch
import yaml
from hub_session import session
from huggingface_hub import DatasetCard
from tiny_set import full_set, tiny_set
from torchvision.transforms.v2.functional import pil_to_tensor

from ldd import cli
from ldd.artefact.exporters import WRITERS
from ldd.artefact.exporters.hub import make_card
from ldd.artefact.location import IMAGES, MANIFEST, OPTIONAL, PREVIEW
from tests.disk.test_files import names

SET = [f"distilled/{name}" for name in (*sorted({*OPTIONAL.values(), IMAGES, MANIFEST}), PREVIEW)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return full_set().save(tmp_path_factory.mktemp("run") / "distilled")


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    datasets.disable_progress_bars()
    with session(monkeypatch, tmp_path_factory.mktemp("cache")) as hub:
        yield hub


def push(path, out, *options, form="parquet", repo="me/digits"):
    return cli.main(
        ["export", str(path), "--format", form, "--out", str(out), "--push-to-hub", repo, *options]
    )


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_dry_run_is_the_default(saved, tmp_path, hub, capsys, form):
    assert push(saved, tmp_path / "out", form=form) == 0
    assert hub.repos == {}
    assert names(tmp_path / "out") == ["README.md", "classes.json", "commands.json", "data", "distilled"]
    printed = capsys.readouterr().out
    ending = {"parquet": "parquet", "webdataset": "tar"}[form]
    file = f"data/train-00000-of-00001.{ending}"
    assert f"would upload {file} ({(tmp_path / 'out' / file).stat().st_size:,} bytes)" in printed
    assert "nothing was uploaded" in printed
    assert printed.endswith("--push_to_hub me/digits --dry_run false\n")


def test_upload(saved, tmp_path, hub, capsys):
    assert push(saved, tmp_path / "out", "--dry_run", "false") == 0
    assert f"made: {tmp_path / 'out'}, {hub.address}/datasets/me/digits/commit/1\n" in capsys.readouterr().out
    assert hub.repos == {"me/digits": True}  # private
    here = {
        p.relative_to(tmp_path / "out").as_posix(): p for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    del here["commands.json"]  # which is not uploaded
    assert hub.files["me/digits"] == {name: path.read_bytes() for name, path in here.items()}
    assert set(here) == {"README.md", "classes.json", "data/train-00000-of-00001.parquet", *SET}
    downloaded = tmp_path / "downloaded"
    for name, content in hub.files["me/digits"].items():
        (downloaded / name).parent.mkdir(parents=True, exist_ok=True)
        (downloaded / name).write_bytes(content)
    read = datasets.load_dataset(str(downloaded), split="train", cache_dir=str(tmp_path / "cache"))
    assert torch.equal(torch.stack([pil_to_tensor(image) for image in read["image"]]), full_set().images)
    assert list(read["label"]) == full_set().labels.tolist()


def test_second_upload_replaces_the_shards_of_the_first(saved, tmp_path, hub):
    hub.repos["me/digits"] = False
    hub.kinds["me/digits"] = "dataset"
    old = {"data/train-00001-of-00002.parquet": b"old", "distilled/decoder.old": b"old"}
    hub.files["me/digits"] = {**old, "notes.txt": b"the user's"}
    assert push(saved, tmp_path / "out", "--dry_run", "false", "--private", "false") == 0
    there = ["README.md", "classes.json", "data/train-00000-of-00001.parquet", *SET, "notes.txt"]
    assert sorted(hub.files["me/digits"]) == there


def test_refused_uploads(saved, tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert push(saved, tmp_path / "out", "--dry_run", "false") == 2
    assert "push_to_hub (me/digits): the hub refused (" in capsys.readouterr().err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    assert push(saved, tmp_path / "out", "--overwrite", "--dry_run", "false") == 2
    assert "http://127.0.0.1:9 cannot be reached" in capsys.readouterr().err
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("repo", "form", "message"),
    [
        ("me/digits", "pt", "hubs do not read --format pt; choose one of parquet, webdataset"),
        ("digits", "parquet", "must have the form user/name"),
        ("me/dig its", "parquet", "cannot name a repository"),
    ],
)
def test_refused_before_anything_is_written(saved, tmp_path, hub, capsys, repo, form, message):
    assert push(saved, tmp_path / "out", form=form, repo=repo) == 2
    assert message in capsys.readouterr().err
    assert names(tmp_path) == []


def test_options_without_an_upload(saved, tmp_path, capsys):
    out = ["--format", "parquet", "--out", str(tmp_path / "out")]
    assert cli.main(["export", str(saved), *out, "--dry_run", "false"]) == 2
    assert "name its repository with --push_to_hub" in capsys.readouterr().err


class TestCard:
    def test_says_what_the_manifest_says(self, saved):
        distilled = full_set()
        card = DatasetCard(make_card(distilled, "me/digits", "parquet"))
        assert card.data.size_categories == ["n<1K"]
        assert card.data.license == "other"
        assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
        for part in (
            "6 images of 3 classes, 8 x 8 px",
            "| 1 | n01 | name n01 | 101 |",
            "| made with | ldd.networks.ConvNet |",
            "| licence of the data | CC BY 4.0 |",
            "| fingerprint of the test split it was made with | abc123 |",
            "| distil | 1.5 | 900 | unknown |",
            "(x - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]",
        ):
            assert part in card.text
        fenced = card.text.partition("```yaml\n")[2].partition("```")[0]
        assert yaml.safe_load(fenced) == distilled.manifest["config"]

    def test_names_are_no_markup(self):
        card = make_card(tiny_set(["a|b\n# c", "<script>"], config={"note": "```"}), "me/x", "parquet")
        assert "| 0 | a\\|b # c | name a\\|b # c | 100 |" in card
        assert "<script>" not in card
        assert "````yaml" in card

    @pytest.mark.parametrize("form", sorted(set(WRITERS) & {"parquet", "webdataset"}))
    def test_unknown_licences(self, form):
        assert DatasetCard(make_card(tiny_set(), "me/x", form)).data.license == "unknown"
