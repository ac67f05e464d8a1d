"""What all benchmarks share: an option `--json`, and figures printed one a line or as one JSON object at the end."""

import argparse
import json
from collections.abc import Mapping


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with `--json`, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


def show(figures: Mapping[str, object], as_json: bool) -> None:
    """Print the figures, one a line, fractions to four digits."""
    for name, value in figures.items():
        print(f"{name:<45}{value:.4g}" if isinstance(value, float) else f"{name:<45}{value}")
    if as_json:
        print(json.dumps(figures))
