"""`latentdd report`: one HTML file on one or several runs."""

from collections.abc import Sequence
from pathlib import Path

from ldd.disk.locks import writing
from ldd.errors import UserError
from ldd.evaluation.checks import FOLDER
from ldd.report import read_runs, write_report
from ldd.runs.ending import Ending
from ldd.runs.options import parse
from ldd.runs.parser import Parser


def report(runs: Sequence[str], out: str, overwrite: bool = False) -> Ending:
    """Write one self-contained HTML file: pictures, curves, accuracies, cost, and the commands that make it again.

    Args:
        runs: folders of runs, or of distilled sets; all of the same data.
        out: the file, ending in .html.
        overwrite: replace the file that is there.

    Raises:
        UserError: runs of different data or by different protocols of one id, a damaged run, or a file that cannot be
            written.
    """
    file = Path(out)
    if file.suffix != ".html":
        raise UserError(f"--out ({out}) must name a file that ends in .html")
    if file.exists() and not overwrite:
        raise UserError(f"--out ({out}) exists; name a new file, or replace it with --overwrite true")
    with writing(file):
        write_report(read_runs(runs), file)
    print(f"a page on {len(runs)} run{'s' * (len(runs) > 1)}, {file.stat().st_size:,} bytes")
    first = Path(runs[0])
    share = ("export", first, "--format", "imagefolder", "--out", file.with_name(f"{first.name}_images"))
    own = (first / "config.yaml").is_file() and not (first / FOLDER).exists()
    return Ending((file,), ("check", first) if own else share)


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    about = "Write one self-contained HTML file on one or several runs."
    parser = Parser(prog=f"latentdd {verb}", description=about)
    parser.add_argument(
        "runs",
        nargs="+",
        type=str,
        help="Folders of runs or of distilled sets, embedded:NAME, hf://user/name, or URLs in a store.",
    )
    parser.add_function_arguments(report, skip={"runs"}, as_positional=False)
    options = parse(parser, arguments)
    return report(**vars(options))
