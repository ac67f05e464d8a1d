"""Sets by name: in the package, and in a repository of a hub, which anybody may have filled."""

import json
import os
import pickle
import shutil
import struct

import pytest
import torch
from hub_session import session
from hub_stand_in import TAG
from huggingface_hub import constants
from tiny_set import full_set, tiny_set

from ldd import cli
from ldd.artefact.identity import identity
from ldd.artefact.location import EMBEDDED, located
from ldd.artefact.set import DistilledSet
from ldd.disk import hub as hub_module
from ldd.errors import UserError

REPO = "me/digits"
NAMES = sorted(path.name for path in EMBEDDED.iterdir())


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """The files of a repository that `latentdd export --push-to-hub` has filled."""
    folder = tmp_path_factory.mktemp("pushed")
    full_set().save(folder / "run" / "distilled")
    with pytest.MonkeyPatch.context() as patch, session(patch, folder) as hub:
        export = ["export", str(folder / "run"), "--format", "parquet", "--out", str(folder / "out")]
        assert cli.main([*export, "--push-to-hub", REPO, "--dry_run", "false"]) == 0
        return hub.files[REPO]


@pytest.fixture
def hub(monkeypatch, tmp_path_factory, pushed):
    with session(monkeypatch, tmp_path_factory.mktemp("cache")) as hub:
        hub.repos[REPO], hub.kinds[REPO], hub.files[REPO] = False, "dataset", dict(pushed)
        yield hub


def same(one, other):
    """Whether two sets are equal in every tensor and fact."""
    tensors = ("images", "labels", "soft_labels", "weights")
    parts = [(one.codes, other.codes), (one.decoder, other.decoder)]
    return (
        all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
        and all(set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a) for a, b in parts)
        and dict(one.manifest) == dict(other.manifest)
    )


@pytest.mark.parametrize("revision", ["", f"@{TAG}", "@main", "@COMMIT"])
def test_a_set_from_a_hub_is_the_set_that_was_pushed(hub, tmp_path, revision):
    local = DistilledSet.load(full_set().save(tmp_path / "local"))
    read = DistilledSet.load(f"hf://{REPO}{revision.replace('COMMIT', hub.sha(REPO))}")
    assert same(read, local)
    assert identity(read) == identity(local)


def test_what_was_fetched_is_there_without_a_network(hub, monkeypatch):
    first = DistilledSet.load(f"hf://{REPO}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(DistilledSet.load(f"hf://{REPO}"), first)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    assert same(DistilledSet.load(f"hf://{REPO}"), first)
    with pytest.raises(UserError, match=r"^path='hf://me/other': the hub cannot be reached \(") as raised:
        DistilledSet.load("hf://me/other")
    cure = "fetch it where there is a network (`hf download me/other --repo-type dataset`) and give the local folder"
    assert str(raised.value).endswith(f", and the cache has no copy; {cure}")


def test_a_newer_commit_is_taken(hub, tmp_path):
    old = DistilledSet.load(f"hf://{REPO}")
    commit = hub.sha(REPO)
    newer = tiny_set(seed=8)
    for path in newer.save(tmp_path / "newer").iterdir():
        hub.files[REPO][f"distilled/{path.name}"] = path.read_bytes()
    assert torch.equal(DistilledSet.load(f"hf://{REPO}").images, newer.images)
    with pytest.raises(UserError, match="has no revision '0000"):
        DistilledSet.load(f"hf://{REPO}@{'0' * 40}")
    assert commit != hub.sha(REPO)
    assert old.manifest.seed == 7


def test_every_verb_that_takes_a_set_takes_the_address(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = f"hf://{REPO}"
    for command in (
        ("inspect", name),
        ("export", name, "--format", "imagefolder", "--out", "folder"),
        ("report", name, "--out", "report.html"),
    ):
        assert cli.main([*command]) == 0, capsys.readouterr().err
    assert "6 of 8 x 8 px" in capsys.readouterr().out
    assert str(tmp_path) not in (tmp_path / "report.html").read_text()
    recorded = json.loads((tmp_path / "folder" / "commands.json").read_text())
    assert [one["command"] for one in recorded] == [
        f"latentdd export {name} --format imagefolder --out folder"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf://me", "is not an address on the hub; its form is hf://user/name"),
        ("hf://me/a/b", "is not an address"),
        ("hf://me/../you", "is not an address"),
        ("hf://me/digits@", "is not an address"),
        ("hf://me/digits@../../x", "is not an address"),
        ("hf://me/digit", "no such data set on the hub; check the name, or log in if it is private"),
        ("hf://me/digits@v2", "the repository has no revision 'v2'"),
        ("hf://me/prior", "it is a model's repository, and a data set's is needed"),
        ("hf://me/script", "holds no distilled/manifest.json, which is needed, but README.md, script.py; nothing"),
    ],
)  # fmt: skip
def test_addresses_without_a_set(hub, name, message):
    hub.repos["me/prior"], hub.kinds["me/prior"], hub.files["me/prior"] = False, "model", {}
    hub.repos["me/script"], hub.kinds["me/script"] = False, "dataset"
    hub.files["me/script"] = {"README.md": b"# x", "script.py": b"raise SystemExit('was run')"}
    with pytest.raises(UserError, match=message) as raised:
        DistilledSet.load(name)
    assert "\n" not in str(raised.value)


class Trap:
    def __reduce__(self):
        return os.system, ("touch /tmp/ldd_was_run",)


def header(length):
    """A safetensors file that says its header is so long."""
    return struct.pack("<Q", length) + b"{" * 100


def rewritten(pushed, **files):
    """The files of a repository, some with other contents, whose hashes the manifest states."""
    import hashlib

    manifest = json.loads(pushed["distilled/manifest.json"])
    manifest["sha256"] |= {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    replaced = {f"distilled/{name}": content for name, content in files.items()}
    return {**pushed, **replaced, "distilled/manifest.json": json.dumps(manifest).encode()}


HOSTILE = {
    "a pickle": lambda files: rewritten(files, **{"codes.safetensors": pickle.dumps(Trap())}),
    "a header without end": lambda files: rewritten(files, **{"images.safetensors": header(2**62)}),
    "a header of 300 MB": lambda files: rewritten(files, **{"images.safetensors": header(300 * 2**20)}),
    "another file than its hash": lambda files: {**files, "distilled/images.safetensors": b"other"},
    "a link as the manifest": lambda files: {**files, "distilled/manifest.json": b"../../../../etc/passwd"},
    "a name outside": lambda files: rewritten(files, **{"../../evil.safetensors": b""}),
    "a file that is not of a set": lambda files: rewritten(files, **{"evil.pkl": pickle.dumps(Trap())}),
    "a manifest that is a list": lambda files: {**files, "distilled/manifest.json": b"[" * 50_000},
    "no images": lambda files: {k: v for k, v in files.items() if not k.endswith("images.safetensors")},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_repositories_are_refused(hub, pushed, kind):
    hub.files[REPO] = HOSTILE[kind](pushed)
    with pytest.raises(UserError):
        DistilledSet.load(f"hf://{REPO}")
    assert not os.path.exists("/tmp/ldd_was_run")
    assert not any("evil" in str(path) for path in located(f"hf://{REPO}").rglob("*"))


def test_more_than_fits_on_the_disk_is_not_fetched(hub):
    hub.sizes["distilled/images.safetensors"] = 2**60
    with pytest.raises(
        UserError, match=r"GiB would be fetched to .* nothing was fetched: make room, or move"
    ):
        DistilledSet.load(f"hf://{REPO}")
    assert not os.path.exists(constants.HF_HUB_CACHE)


def test_a_link_in_the_cache_leads_nowhere(hub, tmp_path):
    """The copy is checked like any folder, whoever changed it."""
    folder = located(f"hf://{REPO}") / "distilled"
    shutil.move(folder / "images.safetensors", tmp_path / "images.safetensors")
    (folder / "images.safetensors").symlink_to(tmp_path / "images.safetensors")
    with pytest.raises(UserError, match="is a link out of its folder: refused"):
        DistilledSet.load(f"hf://{REPO}")


def test_nothing_is_downloaded_but_the_set(hub, pushed, monkeypatch):
    asked = []
    original = hub._file
    monkeypatch.setattr(
        hub, "_file", lambda path: asked.append(path.rpartition("/resolve/")[2]) or original(path)
    )
    hub.files[REPO] |= {"distilled/x.pkl": b"x", "x.py": b"x", "data/y.pkl": b"y"}
    DistilledSet.load(f"hf://{REPO}")
    assert {path.partition("/")[2] for path in asked} == {
        name for name in pushed if name.startswith("distilled/")
    }


def test_many_files(monkeypatch, hub):
    monkeypatch.setattr(hub_module, "_MOST_FILES", 2)
    with pytest.raises(UserError, match="at most 2 files are taken"):
        DistilledSet.load(f"hf://{REPO}")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("embedded:digit-1", "; did you mean embedded:digits-1?"),
        ("embedded:digits-01", "; did you mean embedded:digits-1?"),
        ("embedded:digits-100", "; did you mean embedded:digits-10?"),
        ("embedded:../digits-1", "; did you mean embedded:digits-1?"),
        ("embedded:letters", ""),
        ("embedded:", ""),
    ],
)
def test_names_that_are_not_in_the_package(name, near, capsys):
    listed = ", ".join(f"embedded:{one}" for one in NAMES)
    message = f"path={name!r}: no such set in the package; embedded sets: {listed}{near}"
    with pytest.raises(UserError) as raised:
        DistilledSet.load(name)
    assert str(raised.value) == message
    assert cli.main(["inspect", name]) == 2
    assert message in capsys.readouterr().err
