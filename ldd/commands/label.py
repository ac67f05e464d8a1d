"""`latentdd label`: give a distilled set soft labels, or others than it has."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData
from ldd.disk.files import check_writable
from ldd.disk.locks import writing_in
from ldd.evaluation import Labels, Protocol
from ldd.evaluation.ahead import check_labels
from ldd.evaluation.label_curve import check_curve, label_curve, write_curve
from ldd.evaluation.records import FOLDER
from ldd.evaluation.request import Request
from ldd.runs.ending import Ending, ending_of_set
from ldd.runs.verb import run_function
from ldd.runtime.devices import pick_device
from ldd.students.training import check_networks
from ldd.students.workers import NumWorkers


def label(
    path: str,
    data: DistillationData,
    labels: Labels,
    out: str,
    seed: int = 0,
    num_workers: NumWorkers = "auto",
    curve: str | None = None,
    protocol: str = "quick",
    repeats: int = 3,
) -> Ending:
    """Write a distilled set again with one soft label for each image, by an expert of the task or another teacher.

    Args:
        path: folder of a distilled set, or of a run.
        data: the real images that the experts were recorded on.
        labels: whose labels, for instance configs/labels/expert.yaml or configs/labels/classifier.yaml.
        out: folder of the labelled set.
        seed: of what choosing an epoch draws.
        num_workers: worker processes on a CPU, for choosing an epoch and for the curve.
        curve: folder for accuracy against bytes, as a table and a plot: students learn from the set with these labels
            in 8, 16 and 32 bits, all of them or the largest few, and with hard labels. Null for none.
        protocol: of the curve's students: name of a shipped protocol, or path of a protocol file.
        repeats: of the curve's students.

    Raises:
        UserError: a set, data, experts or folder that cannot be used.
    """
    distilled, recipe = DistilledSet.load(path), Protocol.load(protocol)
    of_curve = Request(
        data, recipe, repeats=repeats, seed=seed, num_workers=num_workers, device=pick_device()
    )
    check_curve(of_curve)
    check_labels(distilled, data, labels)
    if curve is not None:
        check_networks(of_curve.factories, data.spec)
    for folder in filter(None, (out, curve)):
        check_writable(folder)
    data.setup()
    labelled, labeller = labels.label(distilled, data, seed, num_workers)
    labelled.save(out)
    split = data.selection_images
    right = (labeller.probabilities(split.images).argmax(1) == split.labels).float().mean()
    print(
        f"labelled by {labeller} ({type(labeller.network).__name__}), whose accuracy on {len(split.labels)} images of "
        f"the selection split is {100 * float(right):.1f} %"
    )
    print(f"{labelled.bytes['labels']:,} bytes of labels")
    ending = ending_of_set(out)
    if curve is None:
        return ending
    about = f"protocol {recipe.id}, {repeats} repeats; bars: one standard deviation"
    with writing_in(curve, "curve"):
        points = label_curve(distilled, labeller, replace(of_curve, records=Path(curve) / FOLDER))
        write_curve(points, Path(curve), about)
    for point in points:
        print(f"{point.form:<16}{point.label_bytes:>12,} bytes of labels  {point.score} %")
    return ending._replace(made=(out, curve))


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    return run_function(label, verb, arguments, data=True)
