"""`latentdd label`: give a distilled set soft labels, or others than it has."""

from collections.abc import Sequence

from ldd.commands.plain import run_function
from ldd.data import DistillationData
from ldd.distilled import DistilledSet
from ldd.evaluation import Labels
from ldd.evaluation.comparison import check_set, pick_device
from ldd.evaluation.workers import NumWorkers
from ldd.files import check_writable
from ldd.ledger import LABEL, Ledger


def label(
    path: str,
    data: DistillationData,
    labels: Labels,
    out: str,
    seed: int = 0,
    num_workers: NumWorkers = "auto",
) -> None:
    """Write a distilled set again with one soft label for each image, by an expert of the whole task.

    Args:
        path: folder of a distilled set, or of a run.
        data: the real images that the experts were recorded on.
        labels: whose labels, for instance configs/labels/expert.yaml.
        out: folder of the labelled set.
        seed: of what choosing an epoch draws.
        num_workers: worker processes on a CPU, for choosing an epoch.

    Raises:
        UserError: a set, data, experts or folder that cannot be used.
    """
    distilled = DistilledSet.load(path)
    check_writable(out)
    data.setup()
    check_set(distilled, data)
    device, ledger = pick_device(), Ledger()
    with ledger.charge(LABEL, device):
        labelled = labels.choose(data, distilled.counts, seed, device, num_workers).label(distilled)
    stages = {**distilled.manifest["ledger"]["stages"], **ledger.stages}
    labelled.manifest["ledger"] = {**distilled.manifest["ledger"], "stages": stages}
    labelled.save(out)
    facts, size = labelled.manifest["labels"], labelled.bytes["labels"]
    print(f"labelled by expert {facts['expert']} at epoch {facts['epoch']}: {out}, {size:,} bytes of labels")


def main(verb: str, arguments: Sequence[str]) -> None:
    """Run the verb."""
    run_function(label, verb, arguments, data=True)
