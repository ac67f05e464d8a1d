"""One HTML page on finished runs: their sets, how good they are, what they cost, and the commands that made them."""

from ldd.report.page import write_report
from ldd.report.runs import Run, check_comparable, read_runs

__all__ = ["Run", "check_comparable", "read_runs", "write_report"]
