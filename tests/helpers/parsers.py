"""The parser of a command line, taken out before anything runs."""

import pytest


class _Parser(Exception):
    """Carries the parser of a command line out of Lightning, which would run what it parses."""


def parser_of(command_line, *arguments, **options):
    class Stopped(command_line):
        def parse_arguments(self, parser, args):
            raise _Parser(parser)

    with pytest.raises(_Parser) as stopped:
        Stopped(*arguments, **options)
    return stopped.value.args[0]
