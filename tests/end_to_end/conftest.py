"""The parser of `latentdd fit`, and what small verbs read, each made once for a file."""

import pytest
from kills import make_world
from parsers import parser_of
from small_runs import ROOT

from ldd.distiller.module import Distiller
from ldd.runs.command_line import DistillationCLI


@pytest.fixture(scope="module")
def fit_parser():
    return parser_of(DistillationCLI, Distiller, "runs/default")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What the verbs of `kills.VERBS` read."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        make_world(folder)
    return folder
