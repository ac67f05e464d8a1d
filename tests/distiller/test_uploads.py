"""Codes alone: what comes back is what was sent, within half a level, and its images are what the prior makes of it."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from gaussian_sets import CONFIG, gaussian_set
from tiny_set import classes_of

from ldd import cli
from ldd.artefact.classes import of_classes
from ldd.artefact.set import DistilledSet
from ldd.disk.files import read_tensors
from ldd.distiller.synthesis import StoredSampler
from ldd.distiller.uploads import read_upload, write_upload
from ldd.errors import UserError
from ldd.federation import merge
from ldd.priors.loading import EMBEDDED
from ldd.runtime.seeding import generator

WITH_DATA = CONFIG | {"data": {"root": "/a"}}


def gaussians(wnids, seed):
    """With everything that may or may not be sent."""
    weights = torch.arange(2.0 * len(wnids))
    facts = {"mean": (0.1, 0.2, 0.3), "stages": {"distil": {"seconds": 3.0}}}
    return gaussian_set(wnids, seed, scale=3.0, config=WITH_DATA, weights=weights, **facts)


@pytest.fixture(scope="module")
def made():
    return gaussians(["a", "b", "c"], 1)


def worst(tensor, precision):
    """The largest error of each number, by the definition of each precision."""
    if precision == "float32":
        return torch.zeros_like(tensor)
    if precision == "bfloat16":
        return tensor.abs() * 2**-8  # eight bits of the number, rounded to the nearest
    rows = tensor.flatten(1) if tensor.ndim > 1 else tensor[None]
    step = (rows.max(1).values - rows.min(1).values) / 255
    return (step / 2 + 1e-6)[:, None].expand_as(rows).reshape(tensor.shape)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "uint8"])
def test_what_comes_back(made, tmp_path, precision):
    sent = write_upload(made, tmp_path / "up", precision)
    assert sent.bytes == sum(path.stat().st_size for path in (tmp_path / "up").iterdir())
    back = read_upload(tmp_path / "up")
    assert torch.equal(back.labels, made.labels)
    for tensors, others in (
        (made.codes, back.codes),
        (made.decoder, back.decoder),
        ({"w": made.weights}, {"w": back.weights}),
    ):
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            assert ((others[name] - tensor).abs() <= worst(tensor, precision)).all(), name
    assert torch.equal(StoredSampler(back)(None), back.images)
    errors = (back.images.int() - made.images.int()).abs()
    assert sent.mean_error == pytest.approx(float(errors.float().mean()), abs=1e-6)
    assert sent.largest_error == int(errors.max())
    assert back.manifest.imported["lost"] == {
        "precision": precision,
        "mean_error": sent.mean_error,
        "largest_error": sent.largest_error,
    }
    assert sent.largest_error == 0 or precision != "float32"
    assert back.manifest["normalisation"] == made.manifest["normalisation"]
    assert back.classes == made.classes
    saved = DistilledSet.load(back.save(tmp_path / "set"))
    assert (StoredSampler(saved)(generator(0)) != saved.images).any(), "still distributions"
    text = (tmp_path / "up" / "codes.json").read_text()
    assert "root" not in text, "nothing of the run but its prior"
    assert "seconds" not in text


def test_what_was_sent_is_what_a_set_costs(made, tmp_path):
    """Bytes as the files have them, in the set, saved, merged; soft labels as they are stored."""
    sent = [write_upload(one, tmp_path / n, "uint8") for n, one in (("a", made), ("b", gaussians(["d"], 2)))]
    back = read_upload(tmp_path / "a")
    for found in (back, DistilledSet.load(back.save(tmp_path / "set"))):
        assert found.storage.form == "codes"
        assert found.storage.total().bytes == sent[0].bytes
        numbers = sum(
            tensor.numel() for tensor in [*made.codes.values(), *made.decoder.values(), made.weights]
        )
        rows = sum(len(t) if t.ndim > 1 else 1 for t in [*made.codes.values(), *made.decoder.values()]) + 1
        assert found.storage.total().floats == numbers + 2 * rows, "numbers, and two ends of each row"
    merged = merge([back, read_upload(tmp_path / "b")], classes_of(["a", "b", "c", "d"]))
    assert merged.storage.total().bytes == sum(one.bytes for one in sent)
    assert merge([back, gaussians(["d"], 2)], classes_of(["a", "b", "c", "d"])).manifest.sent is None
    soft = replace(back, soft_labels=torch.full((6, 3), 1 / 3).half())
    assert soft.storage.labels == replace(made, soft_labels=soft.soft_labels).storage.labels
    for part in (lambda one: one.first(1), lambda one: of_classes(one, ["c", "a"])):
        assert part(back).storage == part(made).storage, "no longer the set that was sent"
    assert of_classes(back, ["c", "a", "b"]).storage == back.storage, "in another order it is"
    write_upload(back, tmp_path / "c", "float32")
    assert "sent" not in json.loads((tmp_path / "c" / "codes.json").read_text())


@pytest.mark.parametrize(
    ("part", "amount", "message"),
    [
        ("codes", {"floats": 48, "bytes": 47}, r"sent\.codes: 47 bytes cannot hold 48 numbers"),
        ("decoder", {"floats": 9, "bytes": 9}, r"sent\.decoder: 9 bytes cannot hold 3027 numbers"),
        ("labels", {"floats": 0, "bytes": 5}, r"sent\.labels: 5 bytes cannot hold 6 numbers"),
        ("codes", {"floats": 1, "bytes": -1}, r"sent\.codes: bytes \(-1\) must be at least 0"),
        ("codes", {"floats": 1, "bytes": 1.5}, r"sent\.codes\.bytes must be"),
    ],
)
def test_a_manifest_that_makes_a_set_cheap(made, tmp_path, part, amount, message):
    """Other bytes follow from the tensors; these are somebody's word, and no number takes less than one."""
    write_upload(made, tmp_path / "up", "uint8")
    read_upload(tmp_path / "up").save(tmp_path / "set")
    path = tmp_path / "set" / "manifest.json"
    content = json.loads(path.read_text())
    content["sent"][part] = amount
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        DistilledSet.load(tmp_path / "set").summary()


def test_rows_of_one_value(made, tmp_path):
    """Levels of no width: the value itself."""
    flat = replace(
        made, codes={**made.codes, "log_variance": torch.full_like(made.codes["log_variance"], -1.25)}
    )
    write_upload(flat, tmp_path / "up", "uint8")
    assert torch.equal(read_upload(tmp_path / "up").codes["log_variance"], flat.codes["log_variance"])


def test_points_through_the_digits_prior(tmp_path, capsys, monkeypatch):
    """By the verbs: noise follows from the seed and is not sent, and the images need eight times the bytes."""
    monkeypatch.chdir(tmp_path)
    original = DistilledSet.load("embedded:digits-1")
    assert (
        cli.main(["export", "embedded:digits-1", "--format", "codes", "--precision", "uint8", "--out", "up"])
        == 0
    )
    assert "exported 10 codes of 10 classes: " in capsys.readouterr().out
    tensors = read_tensors(tmp_path / "up" / "codes.safetensors")
    assert "noise" not in tensors
    assert sum(tensor.nbytes for tensor in tensors.values()) * 8 < original.images.nbytes
    assert cli.main(["import", "up", "--out", "set"]) == 0
    back = DistilledSet.load("set")
    assert torch.equal(back.codes["noise"], original.codes["noise"])
    sizes = [path.stat().st_size for path in (tmp_path / "up").glob("codes.*")]
    assert back.storage.total().bytes == sum(sizes) < original.storage.total().bytes == 30_800
    assert (back.images.int() - original.images.int()).abs().float().mean() < 4
    assert cli.main(["rediffuse", "set", "--prior", "embedded:digits-one-step", "--out", "again"]) == 0
    assert DistilledSet.load("again").storage.total() == original.storage.total(), "images alone"
    assert cli.main(["import", "up", "--out", "other", "--classes", "imagenette"]) == 2
    assert (
        "classes is about files of other programs, and codes say all of themselves" in capsys.readouterr().err
    )
    assert cli.main(["export", "set", "--format", "pt", "--precision", "uint8", "--out", "p"]) == 2
    assert "precision (uint8) is of codes alone" in capsys.readouterr().err


def test_a_prior_that_lies_in_a_folder(tmp_path, capsys):
    """Where the set is, or where the run's own recipe says: the manifest has the prior's name alone."""
    original = DistilledSet.load("embedded:digits-1")
    config = copy.deepcopy(dict(original.manifest.config))
    config["model"]["prior"]["init_args"]["path_or_hub_id"] = "mine"
    original.with_facts(config=config).save(tmp_path / "run" / "distilled")
    export = ["export", str(tmp_path / "run"), "--format", "codes", "--precision", "float32", "--out"]
    assert cli.main([*export, str(tmp_path / "no")]) == 2
    assert f"found under its own name next to {tmp_path}" in capsys.readouterr().err
    shutil.copytree(EMBEDDED / "digits", tmp_path / "run" / "mine")
    assert cli.main([*export, str(tmp_path / "beside")]) == 0
    shutil.copytree(EMBEDDED / "digits", tmp_path / "mine")
    back = read_upload(tmp_path / "beside")
    assert torch.equal(StoredSampler(back)(None), original.images), "decoded again, from Python"
    (tmp_path / "run" / "mine").rename(tmp_path / "elsewhere")
    config["model"]["prior"]["init_args"]["path_or_hub_id"] = str(tmp_path / "elsewhere")
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(config))
    config["model"]["prior"]["init_args"]["path_or_hub_id"] = "elsewhere"
    original.with_facts(config=config).save(tmp_path / "run" / "distilled")
    assert cli.main([*export, str(tmp_path / "told")]) == 0
    assert "a pixel is 0.000 of 255 off on average, 0 at most" in capsys.readouterr().out


def test_refusals(made, tmp_path):
    other = gaussians(["d"], 2)
    merged = merge([made, other], classes_of(["a", "b", "c", "d"]))
    soft = replace(made, soft_labels=torch.full((6, 3), 1 / 3).half())
    again = made.with_facts(rediffused=[{}])
    for found, message in (
        (replace(made, codes=None), "holds no codes"),
        (soft, "soft labels, which codes do not give"),
        (again, "made anew after decoding"),
        (merged, "a decoder of each sub-task"),
        (made.with_facts(prior=None), "which prior the codes belong to"),
    ):
        with pytest.raises(UserError, match=message):
            write_upload(found, tmp_path / "no")
    assert not (tmp_path / "no").exists(), "nothing half-written"
    write_upload(made, tmp_path / "up")
    with pytest.raises(UserError, match="is not empty"):
        write_upload(made, tmp_path / "up")
    write_upload(made, tmp_path / "up", overwrite=True)
    path = tmp_path / "up" / "codes.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        read_upload(tmp_path / "up")
    (tmp_path / "letter").mkdir()
    (tmp_path / "letter" / "x.txt").write_text("dear")
    with pytest.raises(UserError, match="holds no earlier codes"):
        write_upload(made, tmp_path / "letter", overwrite=True)
