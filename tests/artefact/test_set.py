"""The artefact: round trips, every kind of damage refused by its text, nothing half-written."""

import errno
import json
import os
from dataclasses import MISSING, fields

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from tiny_set import classes_of, full_set, random_images, tiny_set
from torch.utils.data import DataLoader

import ldd
from ldd.artefact import manifest as manifests, set as distilled_module
from ldd.artefact.manifest import Manifest
from ldd.artefact.set import DistilledSet
from ldd.disk.files import sha256, write_tensors
from ldd.errors import UserError

ALL_FILES = ["codes.safetensors", "decoder.safetensors", "images.safetensors", "manifest.json", "preview.png"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A complete artefact; tests that damage it take `folder`."""
    return full_set().save(tmp_path_factory.mktemp("saved") / "set")


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    copy = tmp_path / "set"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def edit(folder, change):
    """Apply `change` to the manifest of `folder`."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    replaced = change(manifest)
    path.write_text(json.dumps(manifest if replaced is None else replaced))


def rewrite(folder, name, tensors):
    """Another file in the place of one, with a hash that fits: damage that only the checks of contents can see."""
    write_tensors(folder / name, tensors)
    edit(folder, lambda manifest: manifest["sha256"].update({name: sha256(folder / name)}))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class TestRoundTrip:
    def test_everything_comes_back(self, saved):
        assert names(saved) == ALL_FILES
        original, loaded = full_set(), DistilledSet.load(saved)
        for name in ("images", "labels", "soft_labels", "weights"):
            assert getattr(loaded, name).dtype == getattr(original, name).dtype
            assert torch.equal(getattr(loaded, name), getattr(original, name))
        assert loaded.classes == original.classes
        assert loaded.codes.keys() == {"latents", "labels"}
        assert loaded.decoder["0.weight"].dtype == torch.bfloat16
        assert loaded.decoder["0.weight"].shape == (5, 5)

    def test_manifest(self, saved):
        manifest = json.loads((saved / "manifest.json").read_text())
        assert manifest["format_version"] == 1
        assert manifest["package_version"] == ldd.__version__
        assert manifest["config"] == {"model": {"lr": 0.1, "sizes": [1, 2]}, "data": None}
        assert manifest["seed"] == 7
        assert manifest["classes"][1] == {"label": 1, "id": 101, "wnid": "n01", "name": "name n01"}
        assert manifest["normalisation"] == {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
        assert manifest["test_split_fingerprint"] == "abc123"
        assert manifest["licences"] == {"prior": "MIT", "data": "CC BY 4.0"}
        assert manifest["seen_networks"] == ["ldd.networks.ConvNet"]
        assert manifest["sha256"] == {n: sha256(saved / n) for n in ALL_FILES if n != "manifest.json"}
        # 6 images of 3 x 8 x 8; 6 int64 labels, 6 x 3 halves, 6 floats; 6 x 4 x 2 x 2 floats and 6 int64; 25 bfloat16.
        assert manifest["ledger"]["bytes"] == {"images": 1152, "labels": 108, "codes": 432, "decoder": 50}
        assert manifest["ledger"]["stages"]["distil"] == {"seconds": 1.5, "peak_memory_mib": 900.0}
        assert DistilledSet.load(saved).manifest == manifest

    def test_saving_again_gives_the_same_bytes(self, saved, tmp_path):
        again = DistilledSet.load(saved).save(tmp_path / "again")
        for name in ALL_FILES:
            assert (again / name).read_bytes() == (saved / name).read_bytes()

    def test_least_set(self, tmp_path):
        path = tiny_set().save(tmp_path / "set")
        assert names(path) == ["images.safetensors", "manifest.json", "preview.png"]
        loaded = DistilledSet.load(path)
        assert loaded.soft_labels is loaded.weights is loaded.codes is loaded.decoder is None
        assert loaded.manifest["licences"] == {"prior": "unknown", "data": "unknown"}

    def test_run_folder_and_string(self, tmp_path):
        tiny_set().save(tmp_path / "run" / "distilled")
        assert DistilledSet.load(str(tmp_path / "run")).num_classes == 3

    def test_replaces_an_older_artefact(self, folder):
        tiny_set(seed=3).save(folder)
        assert names(folder) == ["images.safetensors", "manifest.json", "preview.png"]
        assert DistilledSet.load(folder).manifest["seed"] == 3

    def test_facts_may_be_replaced_before_saving(self, tmp_path):
        distilled = tiny_set(seed=3).with_facts(config={"a": (1,)}, step=5)
        assert distilled.manifest.config == {"a": [1]}
        manifest = DistilledSet.load(distilled.save(tmp_path / "set")).manifest
        assert (manifest.config, manifest.step, manifest.seed) == ({"a": [1]}, 5, 3)
        with pytest.raises(UserError, match="config must be a mapping or null, got 'a: 1'"):
            distilled.with_facts(config="a: 1")
        with pytest.raises(TypeError, match="a manifest has no field stpe"):
            distilled.with_facts(stpe=1)

    def test_a_manifest_reads_as_a_mapping(self, saved):
        manifest = DistilledSet.load(saved).manifest
        assert manifest["seed"] == manifest.get("seed") == manifest.seed == 7
        assert manifest["normalisation"]["std"] == [0.4, 0.5, 0.6]
        assert manifest.get("step", 0) == 0
        assert "step" not in manifest
        assert list({**manifest}) == list(json.loads((saved / "manifest.json").read_text()))
        with pytest.raises(TypeError):
            manifest["seed"] = 8
        manifest["ledger"]["stages"].clear()
        assert manifest["ledger"]["stages"].keys() == {"distil", "prune"}

    def test_keys_of_other_versions_stay(self, folder, tmp_path):
        def add(manifest):
            manifest["later"] = {"a": [1]}
            manifest["ledger"]["energy"] = 5

        edit(folder, add)
        loaded = DistilledSet.load(folder)
        assert loaded.manifest["later"] == {"a": [1]}
        again = json.loads((loaded.save(tmp_path / "again") / "manifest.json").read_text())
        assert again == json.loads((folder / "manifest.json").read_text())

    def test_floats_become_bytes(self):
        floats = torch.tensor([-1.0, -0.5, 0.0, 1.0]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
        made = DistilledSet.from_images(floats, torch.tensor([0]), classes_of(["a"]))
        # (x + 1) * 127.5 rounded to even: 0, 63.75, 127.5, 255
        assert made.images[0, 0].flatten().tolist() == [0, 64, 128, 255]
        rounded_up = DistilledSet.from_images(floats * 1.0001, torch.tensor([0]), classes_of(["a"]))
        assert torch.equal(rounded_up.images, made.images)


class TestUse:
    def test_dataset(self):
        distilled = tiny_set()
        dataset = distilled.as_dataset()
        assert dataset.classes == ["name n03", "name n01", "name n02"]
        assert dataset.targets == [0, 0, 1, 1, 2, 2]
        images, labels = next(iter(DataLoader(dataset, batch_size=6)))
        assert labels.tolist() == dataset.targets
        assert images.dtype == torch.float32
        assert torch.allclose(images, distilled.images.double().float() / 255 * 2 - 1, atol=1e-6, rtol=0)

    def test_counts(self):
        assert (tiny_set().images_per_class, tiny_set().num_classes, tiny_set().image_size) == (2, 3, 8)
        uneven = DistilledSet.from_images(random_images(4), torch.tensor([0, 1, 1, 1]), classes_of("ab"))
        assert uneven.images_per_class == uneven.counts == [1, 3]

    def test_any_order_of_images(self, tmp_path):
        labels = torch.tensor([1, 0, 1, 0], dtype=torch.uint8)
        path = DistilledSet.from_images(random_images(4), labels, classes_of("ab")).save(tmp_path / "set")
        assert DistilledSet.load(path).labels.tolist() == [1, 0, 1, 0]

    def test_summary_is_json(self):
        summary = json.loads(json.dumps(full_set().summary()))
        assert summary["num_classes"] == 3
        assert summary["bytes"] == 1152 + 108 + 432 + 50
        assert summary["codes"] == {"latents": [6, 4, 2, 2], "labels": [6]}

    @pytest.mark.parametrize("wnids", [["a"], [f"c{i}" for i in range(200)]], ids=len)
    def test_preview_is_a_picture(self, tmp_path, wnids):
        path = tiny_set(wnids, images_per_class=1).save(tmp_path / "set")
        with Image.open(path / "preview.png") as picture:
            picture.load()
            assert min(picture.size) > 64


class TestFromImages:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"images": torch.full((2, 3, 8, 8), 1.5)},
                r"images must lie in \[-1, 1\], got \[1.5, 1.5\]; undo",
            ),
            ({"images": torch.full((2, 3, 8, 8), torch.nan)}, "images hold NaN or infinite values"),
            ({"images": random_images(2).long()}, r"images must be uint8 or float in \[-1, 1\], got int64"),
            ({"images": random_images(2)[:, :1]}, r"images must be .*got uint8 \(2, 1, 8, 8\).*expand"),
            ({"images": random_images(2)[..., :4]}, r"images must be \(N, 3, H, H\), square"),
            ({"images": random_images(2)[:0], "labels": torch.arange(0)}, "at least one"),
            ({"images": [1, 2]}, "images must be a tensor, got list"),
            ({"labels": torch.tensor([0, 2])}, r"label 2 of image 1 is outside 0\.\.1; labels count"),
            ({"labels": torch.tensor([-1, 1])}, r"label -1 of image 0 is outside 0\.\.1"),
            (
                {"labels": torch.tensor([0, 1, 1])},
                "there are 2 images and 3 labels; each image needs one label",
            ),
            ({"labels": torch.tensor([0, 0])}, r"1 of 2 classes have no image: 1 \(name b\); leave them out"),
            ({"labels": torch.tensor([0.0, 1.0])}, r"labels must be whole numbers, got float32 \(2,\)"),
            ({"labels": torch.eye(2).long()}, r"labels must be \(N,\) int64, got int64 \(2, 2\)"),
            ({"labels": [0, 1]}, "labels must be a tensor, got list"),
            ({"classes": classes_of("ab")[::-1]}, r"classes must be ordered by label 0\.\.1, got \[1, 0\]"),
            ({"classes": ["a", "b"]}, "classes must be ClassInfo"),
            ({"classes": []}, "classes must be a list of at least one class"),
            ({"soft_labels": torch.ones(2, 3)}, r"soft_labels must be float \(2, 2\), got float32 \(2, 3\)"),
            (
                {"soft_labels": torch.tensor([[2.0, -1.0]] * 2)},
                r"must be probabilities in \[0, 1\]; take the softmax",
            ),
            ({"soft_labels": torch.full((2, 2), torch.nan)}, r"must be probabilities in \[0, 1\]"),
            ({"weights": torch.ones(3)}, r"weights must be float \(2,\), got float32 \(3,\)"),
            ({"weights": torch.zeros(2)}, "weights must be finite, at least 0, and not all 0"),
            ({"weights": torch.tensor([1.0, -1.0])}, "weights must be finite, at least 0"),
            ({"codes": {"z": torch.tensor([torch.inf])}}, "codes 'z' holds NaN or infinite values"),
            (
                {"decoder": {"w": torch.zeros(2, dtype=torch.complex64)}},
                "decoder 'w' has dtype torch.complex64",
            ),
            ({"mean": (0.5,)}, r"normalisation\.mean must be a list of 3 values, got \[0.5\]"),
            ({"std": (0.5, 0.5, 0.0)}, r"normalisation: std must be above 0, got \[0.5, 0.5, 0.0\]"),
            ({"seed": 1.5}, "seed must be a whole number or null, got 1.5"),
            (
                {"config": {"a": object()}},
                "config must be plain JSON values: Object of type object",
            ),
            ({"config": {"a": float("nan")}}, "config must be plain JSON values"),
            ({"licences": {"data": None}}, r"licences\['data'\] must be text"),
            (
                {"stages": {"distil": {"seconds": "long"}}},
                r"ledger\.stages\['distil'\]\['seconds'\] must be a number or null, got 'long'",
            ),
        ],
    )
    def test_refused(self, changes, message):
        given = {"images": random_images(2), "labels": torch.arange(2), "classes": classes_of("ab")}
        with pytest.raises(UserError, match=message):
            DistilledSet.from_images(**(given | changes))


class TestDamage:
    def refused(self, folder, message):
        with pytest.raises(UserError, match=message) as caught:
            DistilledSet.load(folder)
        assert str(folder) in str(caught.value)

    def test_nothing_there(self, tmp_path):
        self.refused(
            tmp_path / "none", "none does not exist; name a distilled set or the folder of a finished run"
        )
        self.refused(
            tmp_path, r"is not a distilled set: neither it nor .*distilled holds a manifest\.json; name"
        )

    @pytest.mark.parametrize("name", ["images.safetensors", "codes.safetensors", "preview.png"])
    def test_missing_file(self, folder, name):
        (folder / name).unlink()
        self.refused(folder, f"{name} is missing, though the manifest lists it; copy the artefact again")

    @pytest.mark.parametrize("name", [name for name in ALL_FILES if name != "manifest.json"])
    @pytest.mark.parametrize(
        "damage", [lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""]
    )
    def test_changed_bytes(self, folder, name, damage):
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        self.refused(folder, f"{name} is damaged: its sha256 is not the manifest's; copy the artefact again")

    @pytest.mark.parametrize(
        "text",
        [b"", b"{", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
        ids=["empty", "cut", "no text", "NaN", "deep", "long number"],
    )
    def test_damaged_json(self, folder, text):
        (folder / "manifest.json").write_bytes(text)
        self.refused(
            folder, r"manifest\.json cannot be read as JSON \(.*\); copy the artefact again or export it anew"
        )

    @pytest.mark.parametrize("key", [one.name for one in fields(Manifest) if one.default is MISSING][:-1])
    def test_missing_key(self, folder, key):
        edit(folder, lambda manifest: manifest.pop(key) and None)
        expected = f"missing {key}; copy the artefact again or export it anew"
        if key == "format_version":
            expected = "format_version must be a whole number, got None; the manifest is damaged"
        self.refused(folder, rf"manifest\.json: {expected}")

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("package_version", 1, "package_version must be text"),
            ("config", [1], r"config must be a mapping or null, got \[1\]"),
            ("seed", "0", "seed must be a whole number or null, got '0'"),
            ("seed", True, "seed must be a whole number or null, got True"),
            ("classes", {"0": "a"}, "classes must be a list, got"),
            ("classes", [], "classes must be a list of at least one class"),
            ("classes", [{"label": 0}], r"classes\[0\]: missing id, wnid, name; copy"),
            (
                "classes",
                [{"label": "0", "id": 0, "wnid": "a", "name": "a"}],
                r"classes\[0\]\.label must be a whole number, got '0'; copy the artefact again or export it anew",
            ),
            (
                "classes",
                [{"label": 0, "id": 0, "wnid": "a", "name": "\x1b[2J"}],
                r"classes\[0\]\.name must be text without control characters",
            ),
            ("normalisation", {"mean": [0, 0, 0]}, "normalisation: missing std"),
            (
                "normalisation",
                {"mean": [0, 0, 0], "std": [1, 1, "1"]},
                r"normalisation\.std\[2\] must be a number",
            ),
            ("test_split_fingerprint", 5, "test_split_fingerprint must be text .* or null, got 5"),
            ("licences", {"prior": "MIT"}, "licences must have prior and data"),
            ("seen_networks", "ConvNet", "seen_networks must be a list, got 'ConvNet'"),
            (
                "sha256",
                {"images.safetensors": "abc"},
                r"sha256 of 'images.safetensors' must be 64 hex.*'abc'",
            ),
            ("ledger", {"bytes": {}, "stages": {}}, "ledger: bytes must have images, codes, labels, decoder"),
            (
                "ledger",
                {"bytes": {**dict.fromkeys(manifests.BYTES, 0), "codes": -1}, "stages": {}},
                "ledger: codes must be at least 0, got -1",
            ),
            ("prior", {"class_path": "x"}, "prior: missing image_size, floats, bytes, sha256"),
            ("step", "5", "step must be a whole number or null, got '5'"),
            ("subtasks", [{"classes": "ab", "seed": 0, "step": 1}], r"subtasks\[0\]\.classes must be a list"),
            ("ledger", [], "ledger must be a mapping with bytes, stages"),
        ],
    )
    def test_wrong_value(self, folder, key, value, message):
        edit(folder, lambda manifest: manifest.update({key: value}))
        self.refused(folder, rf"manifest\.json: {message}")

    def test_no_mapping(self, folder):
        edit(folder, lambda _: [1])
        self.refused(folder, r"manifest\.json: a mapping is needed, got \[1\]; this is not a manifest of ldd")

    @pytest.mark.parametrize("order", [[1, 0, 2], [0, 1, 3], [0, 0, 1], [1, 2, 3]])
    def test_class_order(self, folder, order):
        def reorder(manifest):
            for info, label in zip(manifest["classes"], order, strict=True):
                info["label"] = label

        edit(folder, reorder)
        self.refused(
            folder, r"manifest\.json: classes must be ordered by label 0\.\.2, got .*every image would carry"
        )

    def test_fewer_classes_than_labels(self, folder):
        edit(folder, lambda manifest: manifest["classes"].pop() and None)
        self.refused(folder, r"label 2 of image 4 is outside 0\.\.1.*the artefact is damaged: export it anew")

    def test_images_not_listed(self, folder):
        edit(folder, lambda manifest: manifest["sha256"].pop("images.safetensors") and None)
        self.refused(folder, r"manifest\.json lists no images\.safetensors")

    def test_ledger_that_does_not_fit(self, folder):
        edit(folder, lambda manifest: manifest["ledger"]["bytes"].update(decoder=0))
        self.refused(folder, r"ledger\.bytes is .*'decoder': 0.*, the files hold .*'decoder': 50")

    @pytest.mark.parametrize(
        ("tensors", "message"),
        [
            ({"images": random_images(6)}, "must hold images, labels and .*, got images; export"),
            (
                {"images": random_images(6), "labels": torch.arange(3), "x": torch.zeros(1)},
                "got images, labels, x",
            ),
            ({}, "must hold images, labels .*, got nothing"),
            (
                {"images": random_images(6).float(), "labels": torch.arange(6) // 2},
                "images must be uint8, got float32",
            ),
            (
                {"images": random_images(6)[0], "labels": torch.arange(6) // 2},
                r"images must be \(N, 3, H, H\)",
            ),
            ({"images": random_images(6), "labels": torch.arange(3)}, "there are 6 images and 3 labels"),
            (
                {"images": random_images(6), "labels": torch.arange(6)},
                r"label 3 of image 3 is outside 0\.\.2",
            ),
            (
                {"images": random_images(6), "labels": torch.zeros(6)},
                r"labels must be \(N,\) int64, got float32",
            ),
            ({"images": random_images(6), "labels": torch.zeros(6).long()}, "2 of 3 classes have no image"),
        ],
    )
    def test_contents(self, folder, tensors, message):
        rewrite(folder, "images.safetensors", tensors)
        self.refused(folder, message)

    def test_truncated_with_a_hash_that_fits(self, folder):
        file = folder / "images.safetensors"
        file.write_bytes(file.read_bytes()[:-9])
        edit(folder, lambda manifest: manifest["sha256"].update({file.name: sha256(file)}))
        self.refused(folder, r"images\.safetensors is truncated or no safetensors file")


class TestEscape:
    @pytest.mark.parametrize(
        "name", ["../outside", "/etc/passwd", "a/../../b", ".", "..", "", "a\0b", "a\\b"]
    )
    def test_names(self, folder, name):
        edit(folder, lambda manifest: manifest["sha256"].update({name: "0" * 64}))
        # A NUL is refused before: manifests hold no control characters.
        with pytest.raises(
            UserError, match=r"which is not a plain file name: refused|sha256 must be a mapping, got"
        ):
            DistilledSet.load(folder)

    @pytest.mark.parametrize("name", ["images.safetensors", "manifest.json"])
    def test_links_out(self, folder, tmp_path, name):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(
            UserError, match=f"{name} is a link out of its folder: refused; put the file itself there"
        ):
            DistilledSet.load(folder)

    def test_link_loop(self, folder):
        (folder / "preview.png").unlink()
        (folder / "preview.png").symlink_to(folder / "preview.png")
        with pytest.raises(UserError, match=r"preview\.png is missing"):
            DistilledSet.load(folder)

    def test_link_to_the_folder_is_fine(self, folder, tmp_path):
        (tmp_path / "latest").symlink_to(folder)
        assert DistilledSet.load(tmp_path / "latest").num_classes == 3


class TestVersions:
    def test_newer(self, folder):
        edit(folder, lambda manifest: manifest.update(format_version=2))
        with pytest.raises(
            UserError, match=r"format_version 2 is newer than 1, .*pip install --upgrade latentdd"
        ):
            DistilledSet.load(folder)

    @pytest.mark.parametrize("version", [0, -1])
    def test_never_released(self, folder, version):
        edit(folder, lambda manifest: manifest.update(format_version=version))
        with pytest.raises(UserError, match=f"format_version {version} was never released"):
            DistilledSet.load(folder)

    @pytest.mark.parametrize("version", [None, "1", 1.0, True, []])
    def test_no_version(self, folder, version):
        edit(folder, lambda manifest: manifest.update(format_version=version))
        with pytest.raises(UserError, match="format_version must be a whole number"):
            DistilledSet.load(folder)

    def test_upgrade_path(self, folder, monkeypatch):
        """Two versions from now: one renamed a key, the other added one."""
        monkeypatch.setattr(manifests, "FORMAT_VERSION", 3)
        edit(folder, lambda manifest: manifest.update(number=manifest.pop("seed")))
        monkeypatch.setitem(manifests.UPGRADERS, 1, lambda old: {**old, "seed": old.pop("number")})
        monkeypatch.setitem(manifests.UPGRADERS, 2, lambda old: {**old, "added": old["format_version"]})
        loaded = DistilledSet.load(folder)
        assert loaded.manifest.seed == 7
        assert loaded.manifest["added"] == 2
        assert loaded.manifest.format_version == 3
        edit(folder, lambda manifest: manifest.pop("number") and None)
        with pytest.raises(
            UserError, match=r"cannot be upgraded from format_version 1 \(KeyError\('number'\)\)"
        ):
            DistilledSet.load(folder)


class TestSaving:
    def test_foreign_folder_is_not_replaced(self, tmp_path):
        (tmp_path / "thesis.txt").write_text("words")
        with pytest.raises(UserError, match="holds files that are not a distilled set; name a new folder"):
            tiny_set().save(tmp_path)
        assert names(tmp_path) == ["thesis.txt"]

    @pytest.mark.parametrize("writer", ["write_tensors", "draw_grid", "sha256"])
    def test_full_disk(self, folder, monkeypatch, writer):
        before = {file.name: file.read_bytes() for file in folder.iterdir()}

        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(distilled_module, writer, full)
        with pytest.raises(
            UserError, match=f"cannot write {folder}: No space left on device; free some space"
        ):
            tiny_set().save(folder)
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
        assert names(folder.parent) == [folder.name]

    def test_unwritable(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(
            UserError, match=r"cannot write .*file/set: .*; choose a path in a writable folder"
        ):
            tiny_set().save(tmp_path / "file" / "set")

    def test_direct_construction_is_checked(self):
        with pytest.raises(UserError, match="images must be uint8, got float32"):
            DistilledSet(torch.zeros(1, 3, 8, 8), torch.tensor([0]), tiny_set("a").manifest)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=JSON)
def test_fuzzed_manifest(folder, data, value):
    """Any JSON value in any place: refused, or the same images and labels."""
    path = folder / "manifest.json"
    original = path.read_text()
    manifest = json.loads(original)
    node = manifest
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = value
    path.write_text(json.dumps(manifest))
    try:
        loaded = DistilledSet.load(folder)
    except UserError as error:
        assert str(folder) in str(error)  # noqa: PT017 - a refusal is one of two right answers
    else:
        assert torch.equal(loaded.images, full_set().images)
        assert torch.equal(loaded.labels, full_set().labels)
        assert [info.label for info in loaded.classes] == [0, 1, 2]
        json.dumps(loaded.summary())
    finally:
        path.write_text(original)
