"""Names as users have them, in every chart and on the terminal."""

from io import StringIO

import pytest
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from small_world import CLASSES

from ldd.evaluation.checks.confusion import Confusion
from ldd.evaluation.checks.pictures import draw_confusions
from ldd.images import ClassInfo
from ldd.runtime.plain import in_chart, on_terminal
from ldd.runtime.tables import PlainTable
from ldd.sweeps.file import _as_text

NAMES = [
    "a$b_c_d$", "$", "$$", r"a\$b$", r"\frac{",
    "$x^", "plum\U0001f34e", "a\x1bb", "[red]x", ":smile:", "\u202egnp", "100%",
]  # fmt: skip


def drawn(figure):
    FigureCanvasAgg(figure).draw()


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_chart_is_itself(name):
    figure = Figure()
    plane = figure.subplots()
    plane.plot([1], [1], label=in_chart(f"x {name}"))
    plane.set_title(in_chart(name))
    plane.set_xticks([1], [in_chart(name)])
    plane.legend()
    drawn(figure)
    shown, is_formula = plane.title._preprocess_math(plane.title.get_text())
    assert not is_formula
    assert shown == "".join(c if c.isprintable() else "\ufffd" for c in name)


@pytest.mark.filterwarnings("ignore:Glyph")
def test_confusions_of_classes_with_any_name():
    classes = [ClassInfo(i, i, name, name) for i, name in enumerate(NAMES)]
    counts = torch.eye(len(NAMES), dtype=torch.int64)
    drawn(draw_confusions([Confusion("$net_a_b$", counts, 1)], classes))
    drawn(draw_confusions([Confusion("one", torch.ones(1, 1, dtype=torch.int64), 1)], CLASSES[:1]))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_on_the_terminal_is_itself(name):
    console = Console(file=StringIO(), width=200)
    console.print(on_terminal(f" of {name}", bold=f"job {name}:"))
    assert console.file.getvalue().replace("\x1b", "") == f"job {name}: of {name}\n".replace("\x1b", "")


@pytest.mark.parametrize("name", NAMES)
def test_names_that_a_sweep_or_a_federation_hands_on_come_back(tmp_path, name):
    assert yaml.safe_load(_as_text(tmp_path, [name, "zoo"])) == [name, "zoo"]


@pytest.mark.parametrize("name", NAMES[-4:])
def test_titles_of_tables_are_text(name):
    console = Console(file=StringIO(), width=200, color_system=None)
    console.print(PlainTable(f"by {name}", f"of {name}", ("a", name), 1, (("x", name),)))
    assert console.file.getvalue().count(name) == 4
