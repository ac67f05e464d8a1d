"""One page on finished runs: what they made, what it is worth, what it cost, and how to make it again."""

from ldd.report.page import write_report
from ldd.report.runs import Run, check_comparable, read_runs

__all__ = ["Run", "check_comparable", "read_runs", "write_report"]
