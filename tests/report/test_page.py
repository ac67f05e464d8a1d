"""The page: complete, safe from what names hold, atomic; and as a browser shows it on a phone and on a desk."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from browser import CHROMIUM, browser
from PIL import Image
from small_world import SmallData, protocol_file, small_set
from tiny_set import classes_of, random_images
from torchvision.transforms.v2.functional import pil_to_tensor

from ldd import cli
from ldd.artefact.set import DistilledSet
from ldd.commands.check import check
from ldd.report import read_runs
from ldd.report.checks import checks_of
from ldd.report.pictures import gallery
from ldd.runs.history import record_command
from tests.disk.test_files import file_size_limit, names
from tests.report.test_runs import make_run

CONFIG = {
    "seed_everything": 3,
    "model": {"objective": {"class_path": "ldd.objectives.DistributionMatching"}},
    "data": {"root": None},
}
INSIDE = """
[...document.querySelectorAll('.scroll, pre')].every(e => e.getBoundingClientRect().right <= innerWidth)
"""
SMALLEST_TEXT = """
Math.min(...[...document.querySelectorAll('td, dd, p')].map(e => parseFloat(getComputedStyle(e).fontSize)))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    name = "a run with a long name, as sweeps make them"
    left_out = dict.fromkeys(("prior_samples", "prior_samples_bytes_steps"), "a reason of many words " * 9)
    first = make_run(folder / name / "seed-0", config=CONFIG, seed=1, facts={"left_out": left_out})
    small_set(seed=9).save(first / "initial")
    record_command(first, ["fit", "--config", "mine.yaml", "--data.root", "/srv/data"])
    check(str(first), SmallData(), protocol=protocol_file(folder, epochs=2))
    other = make_run(folder / "<script>alert(1)" / "seed-0", protocols=("small", "large"), config=CONFIG)
    return [str(first), str(other)]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert cli.main(["report", *runs, "--out", str(out)]) == 0
    return out


class Reader(HTMLParser):
    """Elements with their attributes, and the text by the element it stands in."""

    VOID = ("meta", "link", "img", "br", "line")

    def __init__(self, text):
        super().__init__()
        self.found, self.text, self._open = [], {}, []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.setdefault(self._open[-1] if self._open else "", []).append(data)


def test_holds_everything(runs, page):
    read = Reader(page.read_text())
    every = [attrs for tag, attrs in read.found if tag == "img"]
    images = [attrs for attrs in every if attrs["alt"].endswith("of its class")]
    files = [io.BytesIO(base64.b64decode(attrs["src"].partition(",")[2])) for attrs in images]
    shown = [pil_to_tensor(Image.open(file)) for file in files]
    first, other = read_runs(runs)
    sets = [first.distilled, first.initial, other.distilled]
    assert torch.equal(torch.stack(shown), torch.cat([of.images for of in sets]))
    alternatives = [attrs["alt"] for attrs in images]
    assert alternatives[:3] == [f"{name}, image 1 of its class" for name in ("red", "green", "blue")]
    captions = read.text["figcaption"]
    for title in (
        "Loss of DistributionMatching",
        "Top-1 accuracy in %, protocol large",
        "Bytes of each set",
        "Cost of each stage",
    ):
        assert title in captions
    commands = next(text for text in read.text["pre"] if "latentdd fit" in text)
    assert "latentdd fit --config mine.yaml --data.root ROOT" in commands
    assert yaml.safe_load(next(text for text in read.text["pre"] if "seed_everything" in text)) == CONFIG


def test_shows_the_checks_of_the_set(runs, page):
    folder = Path(runs[0]) / "checks"
    read = Reader(page.read_text())
    texts = ("each image next to the nearest real ones of training", "what students take each class for")
    for name, text in zip(("neighbours.png", "confusion.png"), texts, strict=True):
        (image,) = [attrs for tag, attrs in read.found if tag == "img" and attrs["alt"] == text]
        assert base64.b64decode(image["src"].partition(",")[2]) == (folder / name).read_bytes()
    found = json.loads((folder / "checks.json").read_text())
    cells = read.text["td"]
    assert f"{found['images']['random_real']['coverage']:.3f}" in cells
    assert f"{100 * found['confusion']['narrow']['accuracy']:.1f}" in cells
    assert {"Images", "Accuracy of each class in %, protocol small"} <= set(read.text["figcaption"])


def test_checks_of_another_set_are_refused(runs, tmp_path, capsys):
    run = shutil.copytree(runs[0], tmp_path / "run")
    shutil.rmtree(run / "distilled")
    small_set(seed=5).save(run / "distilled")
    assert cli.main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 2
    assert "holds the checks of another set than" in capsys.readouterr().err
    (run / "checks" / "checks.json").write_text("{}")
    assert cli.main(["report", str(run), "--out", str(tmp_path / "report.html")]) == 2
    assert "is not what latentdd check writes" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_set_alone_has_its_checks_beside_it(tmp_path):
    for name in ("a", "b"):
        small_set(seed=5 if name == "a" else 6).save(tmp_path / name)
    check(str(tmp_path / "a"), SmallData(), repeats=0)
    with_checks, without = read_runs([str(tmp_path / "a"), str(tmp_path / "b")])
    assert checks_of(with_checks).tables[0].title == "Images"
    assert checks_of(without) is None


def test_self_contained(page):
    read = Reader(page.read_text())
    for tag, attrs in read.found:
        assert tag not in ("script", "iframe", "object", "form")
        for name in ("src", "href", "xlink:href"):
            if name in attrs:
                assert attrs[name].startswith(("data:", "#")), (tag, attrs[name])
        assert not [name for name in attrs if name.startswith("on")]
    assert not re.search(r"@import|url\((?!#)", page.read_text())
    identities = [attrs["id"] for _, attrs in read.found if "id" in attrs]
    assert len(identities) == len(set(identities))


def test_names_are_no_markup(page):
    text = page.read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_same_runs_same_bytes(runs, page, tmp_path):
    assert cli.main(["report", *runs, "--out", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()


def test_nothing_half_written(runs, tmp_path, capsys):
    out = ["--out", str(tmp_path / "report.html")]
    with file_size_limit(10_000):
        assert cli.main(["report", *runs, *out]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert names(tmp_path) == []
    (tmp_path / "report.html").write_text("mine")
    assert cli.main(["report", *runs, *out]) == 2
    assert "exists; name a new file" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "mine"
    assert cli.main(["report", *runs, *out, "--overwrite"]) == 0
    assert cli.main(["report", *runs, "--out", str(tmp_path / "report.txt")]) == 2


def test_different_data(runs, tmp_path, capsys):
    other = make_run(tmp_path / "other", facts={"test_split_fingerprint": "e" * 32})
    assert cli.main(["report", runs[0], str(other), "--out", str(tmp_path / "report.html")]) == 2
    printed = capsys.readouterr().err
    assert "f" * 32 in printed
    assert "e" * 32 in printed
    assert names(tmp_path) == ["other"]


@pytest.mark.parametrize(
    ("classes", "per_class", "shown", "note"),
    [
        (3, 2, 6, ""),
        (30, 10, 90, "30 of 30 classes, 3 of 10 images each"),
        (150, 1, 100, "100 of 150 classes, 1 of 1 images each"),
    ],
)
def test_galleries_are_cut(classes, per_class, shown, note):
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = random_images(len(labels), size=2)
    found = gallery(DistilledSet.from_images(images, labels, classes_of([f"c{i}" for i in range(classes)])))
    assert (len(found.pictures), found.note) == (shown, note)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_as_a_browser_shows_it(page, tmp_path):
    with browser(tmp_path) as shown:
        for width, height in ((360, 740), (1280, 900)):
            backgrounds = []
            for dark in (False, True):
                shown.open(page, width, height, dark=dark)
                assert (
                    shown.value("document.documentElement.scrollWidth") == width
                )  # nothing to scroll sideways
                # Tables and listings that are wider scroll by themselves.
                assert shown.value(INSIDE)
                assert shown.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
                assert shown.value(SMALLEST_TEXT) >= 14
                backgrounds.append(shown.value("getComputedStyle(document.body).backgroundColor"))
                shown.picture(tmp_path / f"{width}-{dark}.png")
                colours = Image.open(tmp_path / f"{width}-{dark}.png").convert("L").getextrema()
                assert colours[1] - colours[0] > 150  # ink is seen on paper
            assert backgrounds == ["rgb(255, 255, 255)", "rgb(16, 20, 24)"]
        assert shown.errors == []
        assert {url.partition(":")[0] for url in shown.requests} <= {"file", "data"}
