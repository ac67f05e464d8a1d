"""Tables of an evaluation for people to read."""

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from ldd.evaluation.results.dimensions import DIFFER, means_differ
from ldd.evaluation.results.plain_table import PlainTable

if TYPE_CHECKING:
    from ldd.evaluation.results.report import Report


MOST_ACROSS = 5
"""Sets that stand side by side; more of them stand one below the other."""


def accuracy_table(report: "Report") -> Table:
    """Mean and standard deviation in %: networks down and sets across, or the other way round where sets are many."""
    scores, means, gains = report.scores(), report.mean_unseen(), report.gains()
    unseen = {row.network: row.unseen for row in report.latest()}
    table = Table(
        title=f"Top-1 accuracy in % (test split, last epoch, protocol {report.protocol}, step {report.step})",
        caption="mean ± population standard deviation over repeats"
        + "; gain: distilled less random_real, over networks that both met" * bool(gains)
        + f"; {DIFFER}" * means_differ(report),
    )
    lines = [["network", *scores, *["gain"] * bool(gains)]]
    for network in unseen:
        cells = [str(of_set[network]) if network in of_set else "" for of_set in scores.values()]
        gain = [f"{100 * gains[network]:+.1f}" if network in gains else ""] * bool(gains)
        lines.append([network if unseen[network] else f"{network} (seen)", *cells, *gain])
    if means:
        cells = [str(means[name]) if name in means else "" for name in scores]
        gain = [f"{100 * gains['mean_unseen']:+.1f}" if "mean_unseen" in gains else ""] * bool(gains)
        lines.append(["mean of unseen", *cells, *gain])
    many = len(scores) > MOST_ACROSS
    if many:
        lines = [list(line) for line in zip(*lines, strict=True)]
        lines[0][0] = "set"
    head, *body = lines
    for place, name in enumerate(head):
        table.add_column(
            Text(name), justify="right" if place else "left"
        )  # Text: a name is no console markup
    for line in body:
        last = line is body[-1] and (bool(gains) if many else bool(means))
        if last:
            table.add_section()
        table.add_row(Text(line[0]), *line[1:], style="bold" if last else None)
    return table


def looks_table(report: "Report") -> PlainTable | None:
    """Last epoch, selected epoch and best on the test split in %, a line for each set and network."""
    selections = report.selections()
    if not selections:
        return None
    rows = [
        (name, network, *(str(score) for score in ways.values()))
        for name, of_set in selections.items()
        for network, ways in of_set.items()
    ]
    return PlainTable(
        f"Three ways to report a student (protocol {report.protocol}, step {report.step}), top-1 in %",
        "last epoch: the result; selected: the epoch that is best on the selection split, tested; best on test: chosen "
        "by the test split itself, only to compare with papers that do so",
        ("set", "network", "last epoch", "selected", "best on test"),
        2,
        tuple(rows),
    )
