"""Values of null: the parser takes any for 'not given' and hands None on, whatever the type."""

from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace

from ldd.errors import UserError


def refuse_nulls(parser: ArgumentParser, options: Namespace) -> None:
    """Refuse null for what has a default and cannot be null.

    Args:
        parser: of the options.
        options: as parsed, before anything is instantiated.

    Raises:
        UserError: names the option.
    """
    for action in parser._actions:
        hint: Any = getattr(action, "_typehint", action.type)
        if action.default is None or hint is None or hint is Any or type(None) in get_args(hint):
            continue
        parts = action.dest.split(".")
        names = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        null = next((name for name in names if options.get(name, "") is None), None)
        if null is not None:
            raise UserError(f"{null} (null) needs a value; leave it out to have the default")
