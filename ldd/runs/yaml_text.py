"""YAML of configuration files and options: what the parser stumbles over becomes an ordinary error."""

import json
import re
from typing import Any

import yaml
from jsonargparse import set_loader
from jsonargparse._loaders_dumpers import yaml_load  # what `set_loader` replaces; there is no public name

_STUMBLES = (yaml.YAMLError, ValueError, LookupError, AttributeError, ArithmeticError)
"""What PyYAML raises for text that it takes for YAML but cannot make a value of (`!!timestamp x`, `2001-99-99`)."""

_DEEPEST = 100
"""Levels of lists and mappings; the parser's C code overflows its stack on some ten thousand."""

_INDENTED = re.compile(rf"^[ \-?:]{{{2 * _DEEPEST},}}", re.MULTILINE)


def guard_yaml() -> None:
    """Let every parser of jsonargparse refuse such text, exit code 2, in place of a traceback."""
    set_loader("yaml", _load, _STUMBLES)


def _load(text: str) -> Any:  # noqa: ANN401 - any value
    depth = deepest = 0
    for bracket in re.findall(r"[][{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > _DEEPEST or _INDENTED.search(text):
        raise ValueError(f"nested in more than {_DEEPEST} levels")
    value = yaml_load(text)  # type: ignore[no-untyped-call]
    json.dumps(value, default=str, skipkeys=True)  # refuses a list that is its own element
    return value
