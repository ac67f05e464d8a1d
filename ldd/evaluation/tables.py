"""Tables of an evaluation for people to read."""

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from ldd.evaluation.dimensions import DIFFER, means_differ
from ldd.evaluation.plain_table import PlainTable

if TYPE_CHECKING:
    from ldd.evaluation.report import Report


def accuracy_table(report: "Report") -> Table:
    """Mean and standard deviation in %, networks down, sets across."""
    scores, means, gains = report.scores(), report.mean_unseen(), report.gains()
    unseen = {row.network: row.unseen for row in report.latest()}
    table = Table(
        title=f"Top-1 accuracy in % (test split, last epoch, protocol {report.protocol}, step {report.step})",
        caption="mean ± population standard deviation over repeats"
        + "; gain: distilled less random_real, over networks that both met" * bool(gains)
        + f"; {DIFFER}" * means_differ(report),
    )
    table.add_column("network")
    for name in scores:
        table.add_column(Text(name), justify="right")  # Text: a name is no console markup
    if gains:
        table.add_column("gain", justify="right")
    for network in unseen:
        cells = [str(of_set[network]) if network in of_set else "" for of_set in scores.values()]
        gain = [f"{100 * gains[network]:+.1f}" if network in gains else ""] * bool(gains)
        table.add_row(Text(network if unseen[network] else f"{network} (seen)"), *cells, *gain)
    if means:
        table.add_section()
        cells = [str(means[name]) if name in means else "" for name in scores]
        gain = [f"{100 * gains['mean_unseen']:+.1f}" if "mean_unseen" in gains else ""] * bool(gains)
        table.add_row("mean of unseen", *cells, *gain, style="bold")
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
