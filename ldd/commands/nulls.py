"""Values that the parser lets through: null for 'not given', whatever the type, and anything for a whole section."""

from typing import Any, get_args

from jsonargparse import ArgumentParser, Namespace

from ldd.errors import UserError


def refuse_nulls(parser: ArgumentParser, options: Namespace) -> None:
    """Refuse null for what has a default and cannot be null, and a section that is no mapping.

    Args:
        parser: of the options.
        options: as parsed, before anything is instantiated.

    Raises:
        UserError: names the option.
    """
    for action in parser._actions:
        hint: Any = getattr(action, "_typehint", action.type)
        free = hint is None or hint is Any or type(None) in get_args(hint)
        if free or action.default is None or action.dest.endswith(".help"):
            continue
        parts = action.dest.split(".")
        names = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
        for name in names:
            value = options.get(name, "")
            if value is None:
                raise UserError(f"{name} (null) needs a value; leave it out to have the default")
            if name != action.dest and name in options and not isinstance(value, Namespace):
                raise UserError(f"{name} ({value}) must hold settings, {name}.{parts[-1]} for instance")
