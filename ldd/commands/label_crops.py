"""`latentdd label-crops`: a teacher's label for every crop that students of a set will see, to be stored."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData
from ldd.disk.files import check_writable
from ldd.disk.parts import make, make_part, parse_part
from ldd.errors import UserError
from ldd.evaluation import Labels, Protocol
from ldd.evaluation.ahead import check_labels
from ldd.labels.crops import check_croppable, crop_work
from ldd.runs.ending import Ending, ending_of_set
from ldd.runs.verb import run_function
from ldd.runtime.devices import pick_device
from ldd.runtime.ledger import LABEL, Ledger, measured


def label_crops(
    path: str,
    data: DistillationData,
    labels: Labels,
    out: str,
    protocol: str = "rded-soft",
    seed: int = 0,
    part: str | None = None,
) -> Ending:
    """Label every crop of every epoch of a protocol once, so that students learn from the file, without the teacher.

    `latentdd evaluate` and `latentdd train` take the file as `--crop_labels`.

    Args:
        path: folder of a distilled set, or of a run.
        data: the real images that the labels' experts were recorded on.
        labels: the teacher, for instance configs/labels/classifier.yaml; `top_k` and `precision` say what is stored.
            The temperature is the protocol's.
        out: file to write, ending in .safetensors.
        protocol: name of a shipped protocol with a teacher, or path of a protocol file.
        seed: of the crops, their order and CutMix.
        part: K/N labels the K-th of N parts of the epochs, on any machine that sees the folder of `out`, and the last
            of them joins all; join joins what is there, or names what is missing. Null labels all that is missing.

    Raises:
        UserError: a set, data, teacher, protocol or file that cannot be used.
    """
    if Path(out).suffix != ".safetensors":
        raise UserError(f"out ({out}) must name a file that ends in .safetensors")
    check_writable(Path(out).parent)
    asked = None if part is None else parse_part(part)
    distilled, recipe, device = DistilledSet.load(path), Protocol.load(protocol), pick_device()
    check_croppable(distilled, recipe)
    check_labels(distilled, data, labels)
    data.setup()
    ledger = Ledger()
    with ledger.charge(LABEL, device):
        labeller = labels.choose(data, distilled.counts, seed, device)

    def cost(seconds: float) -> Mapping[str, float | None]:
        ledger.add({LABEL: measured(seconds, device)})  # also of epochs that other processes labelled
        return ledger.stages[LABEL]

    in_parts = asked is not None
    work = crop_work(Path(out), distilled, labeller, recipe, seed, device, cost, in_parts=in_parts)
    crops = make(work) if asked is None else make_part(work, asked)
    if crops is None:
        return Ending()
    size = sum(tensor.nbytes for tensor in crops.tensors.values())
    print(f"labels of {work.units} x {len(distilled.images)} crops, {size:,} bytes")
    return ending_of_set(path, "--protocol", protocol, "--crop_labels", out)._replace(made=(out,))


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    return run_function(label_crops, verb, arguments, data=True)
