"""A plot of an evaluation: the accuracies of each network on each set."""

from matplotlib.figure import Figure

from ldd.evaluation.results.scores import MEAN_UNSEEN, Scores


def draw_scores(report: Scores) -> Figure:
    """Draw networks from left to right, the mean over unseen ones last, with a mark and a deviation for each set."""
    scores, means, unseen = report.scores(), report.mean_unseen(), report.networks()
    columns = [*unseen, *([MEAN_UNSEEN] if means else [])]
    figure = Figure(figsize=(max(5.0, 1.2 * len(columns) + 2), 3.6), layout="constrained")
    axes = figure.add_subplot(ylabel=f"top-1 accuracy in % ({report.split} split)")
    for number, (name, of_set) in enumerate(scores.items()):
        found = {**of_set, **({MEAN_UNSEEN: means[name]} if name in means else {})}
        places = [place for place, column in enumerate(columns) if column in found]
        shown = [found[columns[place]] for place in places]
        axes.errorbar(
            [place + 0.12 * (number - (len(scores) - 1) / 2) for place in places],
            [100 * score.mean for score in shown],
            yerr=[100 * score.std for score in shown],
            fmt="o",
            capsize=3,
            label=name,
        )
    names = [name if unseen.get(name, True) else f"{name} (seen)" for name in columns]
    axes.set_xticks(range(len(columns)), [name.replace("_", " ") for name in names], rotation=20)
    axes.set_title(f"protocol {report.protocol}, step {report.step}", fontsize="small")
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize="small")
    return figure
