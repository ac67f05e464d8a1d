"""The results of a sweep: one table over its cells and one plot with error bars."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldd.disk.files import atomic_file, read_json, write_csv
from ldd.disk.records import parse
from ldd.errors import UserError
from ldd.evaluation import Score
from ldd.evaluation.results.report import JSON_NAME
from ldd.evaluation.results.rows import DISTILLED, REFERENCE
from ldd.evaluation.results.scores import MEAN_UNSEEN, SPLIT
from ldd.runtime.plain import in_chart
from ldd.runtime.tables import PlainTable

CSV_NAME = "sweep.csv"
PLOT_NAME = "sweep.png"
_ASIDE = 0.12  # of the distance between two named settings
_LEGEND = 66  # characters, beside the keys, for which a panel is wide enough
_KEY = 8  # as many characters as the key of a line takes


@dataclass(frozen=True)
class Row:
    """Accuracy of one network on one set of one cell.

    Attributes:
        names: of the cell's setting on each axis; of a reference its own name, then empty ones.
        seed: of the cell.
        protocol: id.
        set: that students learned from.
        network: its name, or `mean_unseen`.
        score: over the repeats.
    """

    names: tuple[str, ...]
    seed: int
    protocol: str
    set: str
    network: str
    score: Score


@dataclass(frozen=True)
class Results:
    """All rows of a sweep.

    Attributes:
        axes: their names.
        rows: of all finished cells.
        references: names of the settings that ran in addition to the combinations of the axes.
        panels: the axis whose settings have panels of their own in the plot, or None.
        split: that all students were tested on: `test` or `selection`.
    """

    axes: tuple[str, ...]
    rows: tuple[Row, ...]
    references: tuple[str, ...] = ()
    panels: str | None = None
    split: str = "test"

    @classmethod
    def collect(
        cls,
        axes: tuple[str, ...],
        cells: Iterable[tuple[tuple[str, ...], int, Path]],
        references: tuple[str, ...] = (),
        panels: str | None = None,
    ) -> "Results":
        """Read the evaluation.json of each cell, given as (its names, seed, run folder).

        Raises:
            UserError: a file that is none, or cells by different protocols or on different splits.
        """
        rows = []
        hashes: dict[str, set[str]] = {}
        splits: dict[str, Path] = {}
        for names, seed, folder in cells:
            path = folder / JSON_NAME
            found = read_json(path, "remove it")
            try:
                protocol = found["protocol"]["id"]
                hashes.setdefault(protocol, set()).add(found["protocol"]["hash"])
                splits.setdefault(str(found.get(SPLIT, "test")), folder)
                scores = {name: dict(of_set) for name, of_set in found["accuracy"].items()}
                for name, score in found[MEAN_UNSEEN].items():
                    scores[name][MEAN_UNSEEN] = score
                rows += [
                    Row(names, seed, protocol, name, network, parse(Score, score))
                    for name, of_set in scores.items()
                    for network, score in of_set.items()
                ]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{path} is not an evaluation of this program ({error!r}); remove it"
                ) from error
        if len(protocols := sorted({row.protocol for row in rows})) > 1:
            raise UserError(
                f"cells of one sweep were evaluated by different protocols: {', '.join(protocols)}"
            )
        if edited := [name for name, contents in hashes.items() if len(contents) > 1]:
            raise UserError(
                f"protocol {edited[0]} was edited between cells of this sweep; give the new one an id of its own, and "
                "remove the cells of one of the two"
            )
        if len(splits) > 1:
            (one, first), (other, second) = list(splits.items())[:2]
            raise UserError(
                f"{first} was tested on the {one} split, and {second} on the {other} split, which are not compared; "
                "name one evaluation.split for all cells, and remove the folders of those on the other"
            )
        return cls(axes, tuple(rows), references, panels, *splits)

    def score(self, names: tuple[str, ...] | None, of_set: str, network: str) -> Score | None:
        """Return the score over the means of seeds (None: of all cells); with a single one, over its repeats."""
        found = [
            row.score
            for row in self.rows
            if names in (None, row.names) and (row.set, row.network) == (of_set, network)
        ]
        if not found:
            return None
        return found[0] if len(found) == 1 else Score.of(score.mean for score in found)

    def write(self, out: Path | str) -> None:
        """Write `sweep.csv`, with a row for each cell, set and network, and `sweep.png`."""
        head = (*self.axes, "seed", "protocol", "split", "set", "network", "mean", "std", "n")
        rows = [
            (*row.names, row.seed, row.protocol, self.split, row.set, row.network, *astuple(row.score))
            for row in self.rows
        ]
        write_csv(Path(out) / CSV_NAME, [head, *rows])
        with atomic_file(Path(out) / PLOT_NAME) as beside:
            self.plot().savefig(beside, format="png", dpi=150)

    def table(self) -> PlainTable:
        """Return the accuracy in % of distilled sets, cells down, networks across; random real images come last."""
        networks = list(dict.fromkeys(row.network for row in self.rows if row.set == DISTILLED))
        columns = [(DISTILLED, name, name) for name in networks]
        columns.append((REFERENCE, MEAN_UNSEEN, f"{MEAN_UNSEEN} of {REFERENCE}"))
        cells = self._combinations()
        found = {(names, *column): self.score(names, *column[:2]) for names in cells for column in columns}
        there = [column for column in columns if any(found[(names, *column)] for names in cells)]
        rows = tuple((*names, *(str(found[(names, *column)] or "") for column in there)) for names in cells)
        return PlainTable(
            f"Top-1 accuracy in % of distilled sets ({self.split} split, protocol {self.rows[0].protocol})",
            "mean ± population standard deviation over seeds (over repeats where there is one seed)",
            (*self.axes, *(head for _, _, head in there)),
            len(self.axes),
            rows,
        )

    def plot(self) -> Figure:
        """Draw the mean accuracy over unseen networks along the first axis, a line for each setting of the others.

        Horizontal lines are the references and random real images, with bands of one standard deviation. With `panels`
        each setting of that axis has a panel of its own, and there is no line for it.
        """
        measure = MEAN_UNSEEN if self.score(None, DISTILLED, MEAN_UNSEEN) else self.rows[0].network
        parts = self._panels()
        figure = Figure(figsize=(6.4 * len(parts), 4.2), layout="constrained")
        planes = figure.subplots(1, len(parts), squeeze=False)[0]
        for plane, (title, part) in zip(planes, parts, strict=True):
            part._draw(plane, measure)
            heading = f"{title}; " if title else ""
            plane.set_title(
                in_chart(
                    f"{heading}protocol {self.rows[0].protocol}; bars and bands: one standard deviation"
                ),
                fontsize="small",
            )
        # Once, below all panels: inside one it hides points. What several panels have is named once.
        named = {
            label: line
            for plane in planes
            for line, label in zip(*plane.get_legend_handles_labels(), strict=True)
        }
        columns = max(1, _LEGEND * len(parts) // (_KEY + max(map(len, named))))
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns)
        return figure

    def _panels(self) -> list[tuple[str, "Results"]]:
        """Return title and results of each panel, without the axis of the panels."""
        if self.panels is None:
            return [("", self)]
        place = self.axes.index(self.panels)
        rest = self.axes[:place] + self.axes[place + 1 :]
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            mine = replace(row, names=row.names[:place] + row.names[place + 1 :])
            found.setdefault(row.names[place], []).append(mine)
        return [
            (f"{self.panels} {name}", Results(rest, tuple(rows), split=self.split))
            for name, rows in found.items()
        ]

    def _draw(self, plane: Axes, measure: str) -> None:
        grid = [names for names in self._combinations() if names[0] not in self.references]
        positions = _positions([names[0] for names in grid])
        lines = list(dict.fromkeys(names[1:] for names in grid))
        for number, rest in enumerate(lines):
            # Named settings stand next to each other, so that error bars of different lines do not overlap.
            aside = 0.0 if _numbers(positions) else _ASIDE * (number - (len(lines) - 1) / 2)
            scores = {
                positions[names[0]] + aside: score
                for names in grid
                if names[1:] == rest and (score := self.score(names, DISTILLED, measure))
            }
            plane.errorbar(
                list(scores),
                [100 * score.mean for score in scores.values()],
                yerr=[100 * score.std for score in scores.values()],
                fmt="o-" if _numbers(positions) else "o",
                capsize=4,
                label=in_chart(", ".join(rest)) or DISTILLED,
            )
        for label, level, style in self._levels(measure):
            line = plane.axhline(
                100 * level.mean, color="black" if style == "-." else "grey", linestyle=style
            )
            line.set_label(in_chart(label))
            plane.axhspan(
                100 * (level.mean - level.std),
                100 * (level.mean + level.std),
                color=line.get_color(),
                alpha=0.12,
            )
        if not _numbers(positions):
            plane.set_xticks(list(positions.values()), list(map(in_chart, positions)))
        plane.set_xlabel(in_chart(self.axes[0]))
        plane.set_ylabel(f"{in_chart(measure).replace('_', ' ')}: top-1 accuracy in % ({self.split} split)")

    def _levels(self, measure: str) -> list[tuple[str, Score, str]]:
        """Name, score and line style of what does not depend on the axes."""
        found = [
            (names[0], self.score(names, DISTILLED, measure), "-.")
            for names in self._combinations()
            if names[0] in self.references
        ]
        found.append((REFERENCE, self.score(None, REFERENCE, measure), "--"))
        return [(name, score, style) for name, score, style in found if score]

    def _combinations(self) -> list[tuple[str, ...]]:
        return list(dict.fromkeys(row.names for row in self.rows))


def _positions(names: Sequence[str]) -> dict[str, float]:
    """Return where each name stands: at its number if all are numbers, else one after the other."""
    with suppress(ValueError):
        return {name: float(name) for name in names}
    return {name: float(place) for place, name in enumerate(dict.fromkeys(names))}


def _numbers(positions: dict[str, float]) -> bool:
    with suppress(ValueError):
        return all(float(name) == place for name, place in positions.items())
    return False
