"""The site builds without a warning, says nothing that is not measured, and looks right in a browser."""

import functools
import importlib.util
import os
import re
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from browser import CHROMIUM, browser
from docs_blocks import ROOT

import ldd

DOCS = ROOT / "docs"
RECIPES = DOCS / "recipes.md"
UNMEASURED = "not yet measured"
needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None,
    reason='needs `pip install -e ".[docs]"`',
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return folder


@needs_mkdocs
def test_pages(site):
    """Each has its page, the search knows them, and nothing is fetched from another address."""
    pages = sorted(site.rglob("index.html"))
    assert len(pages) >= 45
    index = (site / "search" / "search_index.json").read_text()
    assert "modified reverse process" in index
    assert "GaussianCodes" in index
    for page in pages:
        text = page.read_text()
        fetched = re.findall(r'<(?:script|img|iframe)[^>]+src="(https?:[^"]+)"', text)
        fetched += re.findall(
            r'<link[^>]+rel="(?:stylesheet|preconnect|icon)"[^>]+href="(https?:[^"]+)"', text
        )
        assert not fetched, f"{page}: {fetched}"


@needs_mkdocs
def test_the_reference_holds_every_public_name(site):
    anchors = {
        name
        for page in (site / "api").rglob("index.html")
        for name in re.findall(r'id="ldd\.(\w+)"', page.read_text())
    }
    assert set(ldd.__all__) <= anchors, set(ldd.__all__) - anchors


def test_the_reference_names_each_once():
    names = re.findall(
        r"^::: ldd\.(\w+)$", "".join(p.read_text() for p in sorted((DOCS / "api").glob("*.md"))), re.M
    )
    assert sorted(names) == sorted(ldd.__all__)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
@needs_mkdocs
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(site, tmp_path, width):
    """No message on the console, no request elsewhere, nothing wider than the window, no picture missing."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    problems = []
    try:
        with browser(tmp_path) as page:
            for file in sorted(site.rglob("index.html")):
                if width > 1000 and file.parent.parent.name == "api":
                    continue  # what fits a phone; each is alike
                name = str(file.parent.relative_to(site))
                page.open(f"{address}{name}/" if name != "." else address, width, 900)
                if (found := page.value("document.documentElement.scrollWidth")) > width:
                    problems.append(f"{name}: {found} px wide")
                broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
                problems += [f"{name}: {source} is missing" for source in page.value(broken)]
            problems += page.errors
            problems += [url for url in page.requests if not url.startswith((address, "data:", "blob:"))]
    finally:
        server.shutdown()
    assert not problems, "\n".join(problems)


def rows(text):
    """Cells of the rows that name a recipe."""
    return {
        found[0]: found
        for line in text.splitlines()
        if (found := re.findall(r"(?<=\| )[^|]*(?= \|)|(?<=\| )(?=\|)", line)) and found[0].endswith(".yaml`")
    }


def test_every_recipe_has_a_row_and_every_accuracy_its_source():
    """Figures of the table are those of docs/results; what is not there is not yet measured."""
    text, results = RECIPES.read_text(), "".join(path.read_text() for path in (DOCS / "results").glob("*.md"))
    table = rows(text[: text.index("## Before")])
    folders = ("", "paper/", "prior_training/", "experts/")
    shipped = {f"`{f}{p.name}`" for f in folders for p in (ROOT / "configs" / f).glob("*.yaml")}
    assert set(table) == shipped
    for recipe, cells in table.items():
        assert len(cells) == 6, recipe
        _, _, machine, minutes, memory, accuracy = cells
        for cell in (machine, minutes, memory):
            assert cell, f"{recipe}: {UNMEASURED}, or a figure"
        for number in re.findall(r"\d+\.\d", accuracy):
            share = f"0.{number.replace('.', '')}"  # the priors' table counts from 0 to 1
            assert number in results or share in results, f"{recipe}: {number} is not in docs/results"


def test_figures_on_cards_are_those_of_the_results():
    results = "".join(path.read_text() for path in (DOCS / "results").glob("*.md"))
    for card in [*(DOCS / "methods").glob("*.md"), DOCS / "index.md"]:
        text = card.read_text()
        for number in re.findall(r"\d+\.\d(?: ± \d+\.\d)?", re.sub(r"arXiv \d+\.\d+|\d+\.\d M", "", text)):
            assert number in results, f"{card.name}: {number} is not in docs/results"
        if card.name != "index.md":
            for part in ("**Idea.**", "**Command.**", "**Result", "!["):
                assert part in text, f"{card.name}: {part}"


def test_pictures_are_drawn_by_the_script(tmp_path):
    subprocess.run([sys.executable, str(DOCS / "figures" / "draw.py"), str(tmp_path)], check=True)
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name for path in (DOCS / "figures").glob("*.svg")}
    texts = functools.partial(re.findall, r"<text[^>]*>([^<]+)<")
    for name in drawn:
        assert texts((tmp_path / name).read_text()) == texts((DOCS / "figures" / name).read_text()), name


def test_the_release_holds_no_secret():
    """One workflow, whose only token is the one that the index exchanges for the workflow's identity."""
    (file,) = (ROOT / ".github" / "workflows").glob("*.yml")
    text = file.read_text()
    assert "secrets." not in text
    assert "password" not in text
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"}
    publishing = {name for name, job in workflow["jobs"].items() if "id-token" in job.get("permissions", {})}
    assert publishing == {"publish", "site"}
    assert workflow["jobs"]["publish"]["needs"] == ["build"]
    for job in workflow["jobs"].values():
        for step in job["steps"]:
            if "run" in step:
                script = step["run"]
                assert "${{" not in script, "values reach a script through its environment"
                subprocess.run(["bash", "-n", "-c", script], check=True)
