"""Verbs with folders in an object store: the same files as on a disk; a killed run goes on from another machine."""

import time

import fsspec
import pytest
import stores as stand_in
from kills import VERBS, made, spelt
from processes import Started, latentdd
from small_runs import ROOT

from ldd import cli
from ldd.artefact.set import DistilledSet
from ldd.disk.files import sha256

SENT = ("fit", "federate", "experts", "prior sample", "export pt", "report")


def words(verb, world, out, cache):
    """Of a verb, with its cache of images on this machine."""
    typed = [str(word).replace("OUT/made/decoded", str(cache)) for word in VERBS[verb]]
    return spelt(typed, world, out)


@pytest.mark.parametrize("verb", SENT)
def test_a_verb_makes_the_same_files_in_a_store(verb, world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    stand_in.clear()
    assert cli.main(words(verb, world, tmp_path / "disk", tmp_path / "cache")) == 0
    capsys.readouterr()
    assert cli.main(words(verb, world, "noted://bucket", tmp_path / "cache")) == 0
    said = capsys.readouterr().out
    assert "noted://bucket/made" in said
    assert "latentdd/stores" not in said
    for name, content in stand_in.content(fsspec.filesystem("noted"), "noted://bucket").items():
        path = tmp_path / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if path.suffix in (".json", ".yaml"):
            assert b"latentdd/stores" not in content, name
    assert files_in(tmp_path / "store") == files_in(tmp_path / "disk")


def files_in(folder):
    """What matters of the files; a store has no folders of their own."""
    return {name: value for name, value in made(folder).items() if not (folder / name).is_dir()}


def test_a_set_is_saved_to_a_url_and_read_from_it_by_every_reader(monkeypatch, tmp_path, capsys):
    stand_in.clear()
    distilled, url = DistilledSet.load("embedded:digits-1"), "noted://bucket/sets/one"
    distilled.save(url)
    assert DistilledSet.load(url).images.equal(distilled.images)
    assert cli.main(["inspect", url, "--json"]) == 0
    assert (
        cli.main(["evaluate", url, "--data", "digits", "--out", str(tmp_path), "--protocol", "unheard"]) == 2
    )
    assert cli.main(["check", url, "--data", "digits"]) == 2
    assert (
        "is on another machine, where nothing is written; name a folder with --out" in capsys.readouterr().err
    )


def test_a_run_that_was_killed_goes_on_from_another_machine(world, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(ROOT)
    start = words("fit", world, "s3://runs", tmp_path / "cache")
    start[start.index("--trainer.max_steps") + 1] = "12"
    start += ["--trainer.limit_val_batches", "0"]
    local = [word.replace("s3://runs", str(tmp_path / "disk")) for word in start]
    assert cli.main(local) == 0
    with stand_in.s3("runs") as variables:
        bucket = fsspec.filesystem("s3")
        slow = {**variables, "LATENTDD_STORE_SECONDS": "0.1", "XDG_CACHE_HOME": str(tmp_path / "first")}
        run = Started(
            latentdd, [*start, "--trainer.callbacks+=stores.SlowSteps"], tmp_path / "log", environment=slow
        )
        while run.process.is_alive():
            bucket.invalidate_cache()
            if bucket.exists("runs/made/checkpoints/previous.ckpt"):
                break
            time.sleep(0.1)
        run.process.kill()
        run.process.join()
        assert not bucket.exists("runs/made/distilled/manifest.json")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
        assert cli.main(start) == 0
        bucket.invalidate_cache()
        bucket.get("runs/made", str(tmp_path / "back"), recursive=True)
    assert "continuing the run in s3://runs/made" in caplog.text
    for name in ("images", "codes"):
        file = f"distilled/{name}.safetensors"
        assert sha256(tmp_path / "disk" / "made" / file) == sha256(tmp_path / "back" / file)


def test_jobs_of_slurm_share_a_folder_and_are_refused_a_store(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    stand_in.clear()
    typed = words("federate", world, "noted://bucket", tmp_path / "cache")
    assert cli.main([*typed, "--engine", "slurm"]) == 2
    assert "--out (noted://bucket/made): jobs of SLURM share a folder" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["noted://bucket", "noted://bucket/none.yaml", "unheard-of://bucket/a.yaml"])
def test_a_recipe_at_a_url_that_cannot_be_had_ends_with_one_line(url, capsys):
    stand_in.clear()
    for typed in (["--config", url], [f"--config={url}"]):
        assert cli.main(["fit", *typed]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"latentdd fit: error: --config ({url})")
        assert len(said.splitlines()) == 1
