"""`latentdd evaluate`: train networks on a distilled set and on the sets beside it, and compare."""

from collections.abc import Sequence
from pathlib import Path

import rich

from ldd.commands.plain import run_function
from ldd.data import DistillationData
from ldd.distilled import DistilledSet
from ldd.evaluation import Protocol, Report
from ldd.evaluation import evaluate as run_evaluation
from ldd.evaluation.baselines import baselines_by_name
from ldd.evaluation.belonging import identity, refuse_other_test_split
from ldd.evaluation.comparison import INITIAL
from ldd.evaluation.records import FOLDER
from ldd.evaluation.workers import NumWorkers
from ldd.files import check_writable
from ldd.networks import NetworkFactory


def evaluate(
    path: str,
    data: DistillationData,
    out: str,
    networks: dict[str, NetworkFactory] | None = None,
    protocol: str = "ld3m",
    repeats: int = 5,
    seed: int = 0,
    baselines: str = "random_real,full_real",
    num_workers: NumWorkers = "auto",
    other_data: bool = False,
) -> None:
    """Train networks on a distilled set and on the sets beside it, test them, and write and print the comparison.

    Args:
        path: folder of a distilled set, or of a run.
        data: real images: the test split, and what baselines draw from.
        out: folder for evaluation.csv and evaluation.json; results that are there already are kept, and may not be of
            another set of the same training step. Each network that has been tested is kept in its folder `evaluated`,
            so that a command that was killed goes on where it was.
        networks: networks by name; null takes the protocol's.
        protocol: name of a shipped protocol, or path of a protocol file.
        repeats: networks of each kind for each set.
        seed: of everything random.
        baselines: names, separated by commas, out of random_real and full_real, or dotted names of classes. The codes
            before the first step join in where their folder `initial` lies beside the set.
        num_workers: worker processes on a CPU ("auto": one per core); the accuracies do not depend on it.
        other_data: the test split is another than the set was made beside, on purpose.

    Raises:
        UserError: a set, data, protocol or folder that cannot be used.
    """
    distilled = DistilledSet.load(path)
    if not other_data:
        refuse_other_test_split(distilled, data.spec)
    chosen = baselines_by_name(baselines)
    recipe = Protocol.load(protocol)
    earlier = Report.read(out)
    if earlier is not None:
        earlier.check_protocol(recipe.id, recipe.hash)
        earlier.check_set(int(distilled.manifest.get("step", 0)), identity(distilled))
    check_writable(out)
    report = run_evaluation(
        distilled,
        networks,
        data,
        recipe,
        repeats,
        seed,
        baselines=chosen,
        initial=_initial_beside(Path(path)),
        records=Path(out) / FOLDER,
        num_workers=num_workers,
    )
    (report if earlier is None else report.after(earlier)).write(out)
    rich.print(report.table())


def _initial_beside(path: Path) -> DistilledSet | None:
    """The codes before the first step, in a run's folder or beside the set's."""
    for folder in (path / INITIAL, path.resolve().parent / INITIAL):
        if (folder / "manifest.json").is_file() and folder.resolve() != path.resolve():
            return DistilledSet.load(folder)
    return None


def main(verb: str, arguments: Sequence[str]) -> None:
    """Run the verb."""
    run_function(evaluate, verb, arguments, data=True)
