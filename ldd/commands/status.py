"""`latentdd status`: where runs, sweeps and federations stand, and what to type next."""

import json as json_format
from collections.abc import Sequence

import rich

from ldd.disk.stores import as_named
from ldd.errors import check_at_least
from ldd.report.status import Part, last_lines, logs_of, parts_of
from ldd.runs.ending import Ending
from ldd.runs.options import parse
from ldd.runs.parser import Parser
from ldd.runtime.tables import PlainTable


def status(folders: Sequence[str], json: bool = False, lines: int = 0) -> Ending:
    """Print where runs, sweeps, federations and their parts stand: running, stopped, failed or finished.

    Nothing is written, and a run that is going on is not disturbed.

    Args:
        folders: of runs, sweeps or federations, or folders that hold such, or URLs of theirs.
        json: print a list of objects instead of a table.
        lines: show as many last lines of every log: of each rank, job and cell.
    """
    check_at_least(0, "", lines=lines)
    parts = [part for folder in folders for part in parts_of(folder)]
    if json:
        print(json_format.dumps([part.as_json() for part in parts]))
        return Ending()
    rows = tuple((as_named(part.folder), part.kind, part.state, _progress(part), part.note) for part in parts)
    rich.print(PlainTable("", "", ("folder", "kind", "state", "done", "note"), 5, rows))
    for log in [log for part in parts if lines for log in logs_of(part.folder)]:
        print(f"\n{as_named(log)}")
        print(*last_lines(log, lines), sep="\n")
    waiting = [part.next for part in parts if part.next and part.state != "finished"]
    done = ("report", folders[0], "--out", f"{folders[0].rstrip('/')}/report.html")
    return Ending(next=waiting[0] if waiting else done, then=waiting[1:])


def _progress(part: Part) -> str:
    return "" if part.step is None else f"{part.step} of {'?' if part.steps is None else part.steps}"


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    about = "Print where runs, sweeps and federations stand, and what to type next."
    parser = Parser(prog=f"latentdd {verb}", description=about)
    parser.add_argument(
        "folders", nargs="+", type=str, help="Folders of runs, sweeps or federations, or with such in them."
    )
    parser.add_function_arguments(status, skip={"folders"}, as_positional=False)
    return status(**vars(parse(parser, arguments)))
