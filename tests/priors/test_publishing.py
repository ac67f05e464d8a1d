"""A prior in a repository of a hub: the same prior as its folder, and nothing of who pushed it."""

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hub_session import session
from hub_stand_in import TAG
from huggingface_hub import ModelCard, constants
from tiny_denoisers import text_pipeline
from tiny_prior import write_prior_folder

from ldd import cli
from ldd.errors import UserError
from ldd.priors import AutoencoderPrior, LatentDiffusionPrior
from ldd.priors.publishing import publish
from ldd.runtime.seeding import generator

REPO = "me/prior"
UNET = "unet/diffusion_pytorch_model.safetensors"
SECRETS = ("/home/somebody", "secret_place", "hf_abcdefghijklmnopqrst")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A prior whose files say where its maker keeps things, beside files that are none of a prior."""
    folder = write_prior_folder(tmp_path_factory.mktemp("secret_place") / "prior")
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(
        json.dumps({**config, "_name_or_path": "/home/somebody/ckpt"})
    )
    (folder / "README.md").write_text(
        "# A prior\n\n- **command**: `latentdd prior train --data.root /home/somebody/images --out runs/x`\n"
        "- token: hf_abcdefghijklmnopqrst\n- page: https://example.org/a/b\n"
    )
    (folder / "commands.json").write_text("[]")
    (folder / "notes.txt").write_text("/home/somebody")
    (folder / "learned.safetensors").write_bytes(b"which images somebody has")
    (folder / "unet" / "optimizer.pt").write_bytes(pickle.dumps({}))
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    with session(monkeypatch, tmp_path_factory.mktemp("cache")) as hub:
        yield hub


@pytest.fixture(scope="module")
def pushed(folder):
    with pytest.MonkeyPatch.context() as patch, session(patch, folder) as hub:
        assert cli.main(["prior", "push", str(folder), REPO]) == 0
        assert hub.repos == {REPO: True}  # private
        assert hub.kinds == {REPO: "model"}
        return hub.files[REPO]


@pytest.fixture
def filled(hub, pushed):
    hub.repos[REPO], hub.kinds[REPO], hub.files[REPO] = False, "model", dict(pushed)
    return hub


def samples(name):
    prior = LatentDiffusionPrior(name)
    with torch.no_grad():
        return prior.decode(prior.sample(torch.arange(3), generator(0), num_steps=3))


@pytest.mark.parametrize("revision", ["", f"@{TAG}"])
def test_a_pushed_prior_gives_the_samples_of_its_folder(filled, folder, revision):
    assert torch.equal(samples(f"hf://{REPO}{revision}"), samples(str(folder)))


def test_on_the_command_line(filled, folder, tmp_path, monkeypatch):
    for name, out in ((f"hf://{REPO}", "hub.png"), (str(folder), "folder.png")):
        assert cli.main(["prior", "sample", name, "--num-steps", "2", "--out", str(tmp_path / out)]) == 0
    assert (tmp_path / "hub.png").read_bytes() == (tmp_path / "folder.png").read_bytes()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the cache has it
    assert (
        cli.main(
            ["prior", "sample", f"hf://{REPO}", "--num-steps", "2", "--out", str(tmp_path / "again.png")]
        )
        == 0
    )


def test_nothing_of_the_machine_is_pushed(pushed, folder):
    assert set(pushed) == {
        *("README.md", "prior.json", "class_embedding.safetensors", "scheduler/scheduler_config.json"),
        *("unet/config.json", UNET, "vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    }
    for name, content in pushed.items():
        assert not any(secret.encode() in content for secret in SECRETS), name
    assert pushed[UNET] == (folder / UNET).read_bytes()
    card = ModelCard(pushed["README.md"].decode())
    assert card.data.license == "other"
    assert "`latentdd prior train --data.root images --out runs/x`" in card.text
    assert "https://example.org/a/b" in card.text
    assert f'`ldd.LatentDiffusionPrior("hf://{REPO}")`' in card.text


def test_dry_run_shows_and_uploads_nothing(hub, folder, capsys):
    assert cli.main(["prior", "push", str(folder), REPO, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert f"would upload {UNET} ({(folder / UNET).stat().st_size:,} bytes)" in printed
    assert "# A prior" in printed
    assert hub.repos == {}


def test_public_where_asked_for(hub, folder):
    assert cli.main(["prior", "push", str(folder), REPO, "--private", "false"]) == 0
    assert hub.repos == {REPO: False}


def test_the_prior_in_the_package_and_a_text_pipeline(tmp_path):
    """A folder without card and class table; the vocabulary has tokens with slashes, which stay as they are."""
    (tmp_path / "vocabulary").mkdir()
    text_pipeline(tmp_path / "vocabulary").save_pretrained(tmp_path / "text")
    config = tmp_path / "text" / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"name_or_path": "/home/somebody/clip"}))
    for name, out in (("embedded:digits", "digits"), (str(tmp_path / "text"), "published")):
        publish(name, tmp_path / out, REPO)
    parts = [path.relative_to(tmp_path / "text") for path in config.parent.iterdir() if path != config]
    assert parts
    for part in (*parts, "text_encoder/model.safetensors"):
        assert (tmp_path / "published" / part).read_bytes() == (tmp_path / "text" / part).read_bytes()
    written = json.loads((tmp_path / "published" / "tokenizer" / config.name).read_text())
    assert written == json.loads(config.read_text()) | {"name_or_path": "clip"}
    assert "license: unknown" in (tmp_path / "published" / "README.md").read_text()
    card = (tmp_path / "digits" / "README.md").read_text()
    assert "CC BY 4.0" in card
    assert "latentdd prior train --config configs/prior_training/digits.yaml" in card


@pytest.mark.parametrize(
    ("prior", "repo", "message"),
    [
        ("no/such", REPO, "prior (no/such): no such folder here; name a prior's folder"),
        ("hf://me/prior", REPO, "no such folder here"),
        ("embedded:digit", REPO, "did you mean embedded:digits?"),
        ("embedded:digits", "prior", "repo (prior) must have the form user/name"),
        ("embedded:digits", "me/pri or", "cannot name a repository"),
    ],
)
def test_refused_names(hub, capsys, prior, repo, message):
    assert cli.main(["prior", "push", prior, repo]) == 2
    assert message in capsys.readouterr().err
    assert hub.repos == {}


def test_what_is_not_a_whole_prior_is_not_pushed(hub, folder, tmp_path, capsys):
    broken = Path(shutil.copytree(folder, tmp_path / "prior"))
    (broken / UNET).rename(broken / "unet" / "diffusion_pytorch_model.bin")
    assert cli.main(["prior", "push", str(broken), REPO]) == 2
    assert "has no safetensors of unet, and pickles are not published" in capsys.readouterr().err
    shutil.rmtree(broken / "unet")
    assert cli.main(["prior", "push", str(broken), REPO]) == 2
    assert "component 'unet' is missing" in capsys.readouterr().err
    assert hub.repos == {}


class Trap:
    def __reduce__(self):
        return os.system, ("touch /tmp/ldd_prior_was_run",)


def edited(files, **changes):
    config = json.loads(files["unet/config.json"]) | changes
    return {**files, "unet/config.json": json.dumps(config).encode()}


HOSTILE = {
    "a pickle in the place of weights": (
        lambda files: {**files, UNET: pickle.dumps(Trap())},
        "unet cannot be loaded",
    ),
    "weights as a pickle alone": (
        lambda files: (
            {k: v for k, v in files.items() if k != UNET}
            | {"unet/diffusion_pytorch_model.bin": pickle.dumps(Trap())}
        ),
        "has no safetensors of unet, and pickles are not read from hf://",
    ),
    "a header without end": (
        lambda files: {**files, UNET: struct.pack("<Q", 2**62) + b"{" * 100},
        "cannot be loaded",
    ),
    "a class of its own": (
        lambda files: {**edited(files, _class_name="trap.Unet"), "unet/trap.py": b"raise SystemExit"},
        r"holds a trap\.Unet; supported here",
    ),
    "a link as the card": (
        lambda files: {**files, "prior.json": b"/etc/passwd"},
        "prior.json cannot be read",
    ),
    "another repository": (
        lambda files: {"model.safetensors": b"", "x.bin": b""},
        r"holds no \*\.json, which is needed",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_repositories_are_refused(filled, pushed, kind, tmp_path):
    change, message = HOSTILE[kind]
    filled.files[REPO] = change(pushed)
    with pytest.raises(UserError, match=message):
        LatentDiffusionPrior(f"hf://{REPO}")
    assert not os.path.exists("/tmp/ldd_prior_was_run")
    assert not [path for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.suffix in (".bin", ".py")]


def test_repositories_that_are_not_there(filled):
    filled.repos["me/set"], filled.kinds["me/set"], filled.files["me/set"] = False, "dataset", {}
    for name, message in (
        ("hf://me/other", "path_or_hub_id='hf://me/other': no such model on the hub"),
        (f"hf://{REPO}@v2", "the repository has no revision 'v2'"),
        ("hf://me/set", "it is a data set's repository, and a model's is needed"),
        ("hf://me", "path_or_hub_id='hf://me' is not an address on the hub"),
    ):
        with pytest.raises(UserError, match=message):
            AutoencoderPrior(name)
