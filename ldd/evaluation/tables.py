"""Tables of an evaluation for people to read."""

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ldd.evaluation.report import Report


DIFFER = "means over different unseen networks do not compare"


def means_differ(report: "Report") -> bool:
    """Whether the means over unseen networks of two sets are over different networks."""
    unseen = {(row.set, row.network) for row in report.latest() if row.unseen}
    each = [{network for name, network in unseen if name == one} for one in report.mean_unseen()]
    return any(networks != each[0] for networks in each)


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


def looks_table(report: "Report") -> Table | None:
    """Last epoch, selected epoch and best on the test split in %, a line for each set and network."""
    selections = report.selections()
    if not selections:
        return None
    table = Table(
        title=f"Three ways to report a student (protocol {report.protocol}, step {report.step}), top-1 in %",
        caption="last epoch: the result; selected: the epoch that is best on the selection split, tested; best on "
        "test: chosen by the test split itself, only to compare with papers that do so",
    )
    for name in ("set", "network", "last epoch", "selected", "best on test"):
        table.add_column(name, justify="left" if name in ("set", "network") else "right")
    for name, of_set in selections.items():
        for network, ways in of_set.items():
            table.add_row(Text(name), Text(network), *(str(score) for score in ways.values()))
    return table
