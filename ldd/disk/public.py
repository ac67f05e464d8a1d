"""Commands and configurations as they may travel: without what only this machine knows."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldd.disk.shipped import configs_folder

_STANDS_FOR = {"root": "ROOT", "cache_dir": "CACHE"}
"""What stands for an absolute path, by the last part of the option that takes it; elsewhere its last name does."""

_SECRET = re.compile(r"(.*[._-])?(token|password|passwd|secret|credentials?|api[_-]?key)", re.IGNORECASE)
_NAMED = re.compile(
    r"((?:token|password|passwd|secret|credentials?|api[_-]?key)[\"']?\s*[:=]\s*[\"']?)[^\s\"',\]}]+",
    re.IGNORECASE,
)
_TOKEN = re.compile(r"\b(hf_|sk-|ghp_|github_pat_|glpat-)[A-Za-z0-9_-]{16,}")
_WITHHELD = "WITHHELD"

# `//` after a colon belongs to a URL; what follows a letter, a dot or a dash to a relative path.
_ABSOLUTE = r"(?<![\w./~-])(?!(?<=:)//)(?:file:)?(?:~[\w-]*(?=[/\s\"',\]}]|$)|/)"
_WHOLE = re.compile(_ABSOLUTE + r".*", re.DOTALL)
_WITHIN = re.compile(rf"(?<=\"){_ABSOLUTE}[^\"]*|(?<='){_ABSOLUTE}[^']*|{_ABSOLUTE}[^\s\"',\[\]{{}}]*")


def public_command(arguments: Sequence[str]) -> str:
    """Return `latentdd ARGUMENTS` for a shell, without what only this machine knows.

    Relative paths stay as they were typed. Absolute ones, and those below a home (`~`), would tell where somebody
    keeps their files: the data root becomes ROOT, a cache CACHE, and of any other path the last name is left. They are
    found as values of options, after `=`, and inside JSON or YAML. Tokens and passwords are withheld.
    """
    words, option = list[str](), ""
    for word in arguments:
        before, value = "", word
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            before = option + equals
        words.append(before + public_text(value, option))
    return shlex.join(["latentdd", *words])


def public_configuration(config: Any, name: str = "") -> Any:  # noqa: ANN401 - any plain value
    """Return settings (of a run, say) without what only this machine knows; `name` is the setting that holds them."""
    if isinstance(config, Mapping):
        return {key: public_configuration(value, str(key)) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [public_configuration(value, name) for value in config]
    return public_text(config, name) if isinstance(config, str) else config


def public_text(value: str, option: str) -> str:
    """Return the value of an option without absolute paths, tokens and passwords."""
    if value and _SECRET.fullmatch(option):
        return _WITHHELD
    placeholder = _STANDS_FOR.get(re.split(r"[.-]", option)[-1])

    def named(path: re.Match[str]) -> str:
        if path[0] == "/" and path[0] != value:  # between words
            return path[0]
        if Path(path[0]).is_relative_to(configs_folder()):
            return Path(path[0]).relative_to(configs_folder()).as_posix()  # found by this name from anywhere
        _, below, last = path[0].rstrip("/").rpartition("/")
        home = os.path.expanduser(path[0].rstrip("/")) == os.path.expanduser("~")
        return placeholder or (last if below and not home else "PATH")

    pattern = _WHOLE if _WHOLE.match(value) else _WITHIN
    found = _NAMED.sub(rf"\1{_WITHHELD}", pattern.sub(named, value))
    return _TOKEN.sub(_WITHHELD, found)
