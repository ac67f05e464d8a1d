"""Tables of an evaluation, as text that a terminal and a page both show."""

import statistics
from collections.abc import Mapping

from ldd.artefact.size import Units
from ldd.evaluation.results.robustness import robustness
from ldd.evaluation.results.rows import DISTILLED, Score
from ldd.evaluation.results.scores import Scores
from ldd.runtime.tables import PlainTable

MOST_ACROSS = 5
"""Sets that stand side by side; more of them stand one below the other."""

UNITS = ("images a class", "pixels a class", "bytes a class")
"""How tables name what each class has of a set."""

DIFFER = "means over different unseen networks do not compare"


def accuracy_table(report: Scores) -> PlainTable:
    """Return mean and standard deviation in %: networks down and sets across; the other way round for many sets."""
    scores, means, gains = report.scores(), report.mean_unseen(), report.gains()
    lines: list[tuple[str, ...]] = [("network", *scores, *("gain",) * bool(gains))]

    def add(name: str, network: str, cells: Mapping[str, Score]) -> None:
        gain = (f"{100 * gains[network]:+.1f}" if network in gains else "",) * bool(gains)
        lines.append((name, *(str(cells.get(one, "")) for one in scores), *gain))

    units = report.units()
    if units and units.keys() == scores.keys():
        for place, name in enumerate(UNITS):
            shown = (in_units(units[one])[place] for one in scores)
            lines.append((name, *shown, *("",) * bool(gains)))
    for network, unseen in report.networks().items():
        cells = {name: of_set[network] for name, of_set in scores.items() if network in of_set}
        add(network if unseen else f"{network} (seen)", network, cells)
    if means:
        add("mean of unseen", "mean_unseen", means)
    summed = bool(means)
    if len(scores) > MOST_ACROSS:
        lines, summed = list(zip(*lines, strict=True)), bool(gains)
        lines[0] = ("set", *lines[0][1:])
    return PlainTable(
        f"Top-1 accuracy in % ({report.split} split, last epoch, protocol {report.protocol}, step {report.step})",
        "mean ± population standard deviation over repeats"
        + "; gain: distilled less random_real, over networks that both met" * bool(gains)
        + f"; {DIFFER}" * report.means_differ(),
        lines[0],
        1,
        tuple(lines[1:]),
        frozenset({len(lines) - 2} if summed else ()),
    )


def in_units(units: Units) -> tuple[str, str, str]:
    """Return images, pixels and bytes of a class as text."""
    images = "drawn" if units.images is None else f"{units.images:,.6g}"
    return images, f"{units.pixels:,.0f}", f"{units.bytes:,.0f}"


def equal_table(report: Scores) -> PlainTable | None:
    """How far the distilled set is above each other one, at equally many images and for the same bytes, kept apart."""
    units = report.units()
    if DISTILLED not in units or len(units) < 2:
        return None
    own, rows = units[DISTILLED], []
    for name, of_set in units.items():
        common = report.common_unseen(DISTILLED, name)
        means = report.mean_unseen(common) if common else {}
        gain = f"{100 * (means[DISTILLED].mean - means[name].mean):+.1f}" if name in means else ""
        other = name != DISTILLED
        at = [gain if other and same else "" for same in (own.same_images(of_set), own.same_bytes(of_set))]
        rows.append((name, *in_units(of_set), str(means.get(name, "")), *at))
    return PlainTable(
        f"Equal images and equal bytes ({report.split} split, protocol {report.protocol}, step {report.step})",
        "of each class; images: as students see them, drawn: anew in each epoch; pixels: stored; bytes: of all that "
        "training needs; above: distilled less this set in points, over unseen networks that both met, only where both "
        "have equally many images, or the same bytes within a tenth",
        ("set", *UNITS, "mean of unseen", "above, equal images", "above, equal bytes"),
        1,
        tuple(rows),
    )


def looks_table(report: Scores) -> PlainTable | None:
    """Last epoch, selected epoch and best on the test split in %, a line for each set and network."""
    rows = [
        (name, network, *(str(score) for score in ways.values()))
        for name, of_set in report.selections().items()
        for network, ways in of_set.items()
    ]
    if not rows:
        return None
    return PlainTable(
        f"Three ways to report a student (protocol {report.protocol}, step {report.step}), top-1 in %",
        "last epoch: the result; selected: the epoch that is best on the selection split, tested; best on test: chosen "
        "by the test split itself, only to compare with papers that do so",
        ("set", "network", "last epoch", "selected", "best on test"),
        2,
        tuple(rows),
    )


def robustness_table(report: Scores) -> PlainTable | None:
    """Label- and augmentation-robust scores, a line for each network; None without them."""
    columns = ("HLR", "IOR", "LRS", "ARS")
    rows = [
        (
            network,
            *(f"{of[name.lower()]['mean']:.3f} ± {of[name.lower()]['std']:.3f}" for name in columns),
            *(f"{of['percent_scale'][name]['mean']:.2f}" for name in ("lrs", "ars")),
        )
        for network, of in robustness(report).items()
    ]
    if not rows:
        return None
    return PlainTable(
        f"Label- and augmentation-robust scores ({report.split} split, protocol {report.protocol}, step {report.step})",
        "of accuracies as fractions, mean ± population standard deviation over repeats; HLR: full data less distilled, "
        "both with hard labels (lower is better); IOR: distilled less random real, same recipe; 0.269: as good as "
        "random. Last columns: the scale of the released package",
        ("network", *columns, "LRS %", "ARS %"),
        1,
        tuple(rows),
    )


def dimensions_table(report: Scores) -> PlainTable:
    """Storage, work and accuracy of each set; the accuracy is over unseen networks, over all where all were seen."""
    shares, means = report.recovery(), report.mean_unseen()
    rows = []
    for name, found in report.cost().items():
        storage, training, share = found["storage"], found["training"], shares.get(name, {})
        accuracies = [score.mean for score in report.scores()[name].values()]
        accuracy = means[name].mean if name in means else statistics.fmean(accuracies)
        of_all = statistics.fmean(share.values()) if share and not means else None
        recovered = share.get("mean_unseen", of_all)
        cells = (
            name,
            f"{storage['bytes']:,}",
            f"{storage['ipc_equivalents']:.2f}",
            f"{storage['ipc_equivalents_without_labels']:.2f}",
            *(f"{training[key]:,}" for key in ("epochs", "images", "steps", "decodes")),
            f"{training['seconds']:.1f}",
            f"{100 * accuracy:.1f}",
        )
        rows.append(cells + ("" if recovered is None else f"{100 * recovered:.1f} %",) * bool(shares))
    sizes, work = ("bytes", "IPC", "IPC, no labels"), ("epochs", "images", "steps", "decodes", "seconds")
    head = ("set", *sizes, *work, "accuracy")
    return PlainTable(
        "Storage, training cost and recovered accuracy of each set",
        "IPC: stored numbers / (classes x 3 x pixels), with and without labels; images, steps, decodes and seconds: to "
        f"train one network; accuracy: on the {report.split} split, mean over "
        + ("unseen networks" if means else "all networks")
        + f"; {DIFFER}" * report.means_differ(),
        (*head, *("of full data",) * bool(shares)),
        1,
        tuple(rows),
    )
