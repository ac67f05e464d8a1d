"""Numbers that no setting of a component takes, wherever it is written: in a configuration or in Python."""

import importlib
import inspect
import math

import pytest

from ldd.errors import UserError

ROOMS = (
    "augmentation.views",
    "callbacks",
    "data.pruning",
    "evaluation",
    "initializers",
    "labels",
    "networks.scoring",
    "objectives",
    "objectives.discrepancy",
)
NEEDED = {"keep": 0.5, "trajectories": "experts"}  # of those that have no default


def settings():
    """Yield (class, name) of each setting that is a number with a fraction, of components that can be made."""
    found = {}
    for room in ROOMS:
        module = importlib.import_module(f"ldd.{room}")
        for name in dir(module):
            kind = getattr(module, name)
            if inspect.isclass(kind) and kind.__module__.startswith("ldd.") and not inspect.isabstract(kind):
                found[kind] = inspect.signature(kind.__init__, eval_str=True).parameters
    for kind, parameters in found.items():
        needed = {name for name, one in parameters.items() if one.default is one.empty} - NEEDED.keys()
        if needed <= {"self", "args", "kwargs"}:
            for name, one in parameters.items():
                if one.annotation in (float, float | None):
                    yield pytest.param(kind, name, id=f"{kind.__name__}.{name}")


@pytest.mark.parametrize(("kind", "name"), list(settings()))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_setting_that_is_not_a_finite_number_is_refused(kind, name, value):
    needed = {word: given for word, given in NEEDED.items() if word in inspect.signature(kind).parameters}
    with pytest.raises(UserError, match=name):
        kind(**{**needed, name: value})


def test_the_components_are_found():
    assert len({one.values[0] for one in settings()}) > 10
