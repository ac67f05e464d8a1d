"""The parser of `latentdd fit`, built once for a file."""

import pytest
from parsers import parser_of

from ldd.distiller.module import Distiller
from ldd.runs.command_line import DistillationCLI


@pytest.fixture(scope="module")
def fit_parser():
    return parser_of(DistillationCLI, Distiller, "runs/default")
