"""`latentdd check`: copies of real images, diversity and coverage, distance of features, what students confuse."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import rich
import yaml

from ldd.artefact.identity import refuse_other_test_split
from ldd.artefact.location import refuse_name
from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData
from ldd.disk.files import check_writable, read_yaml
from ldd.disk.locks import writing_in
from ldd.distiller.synthesis import stored_sampler
from ldd.errors import UserError
from ldd.evaluation import Labels, Protocol, StoredSet
from ldd.evaluation.ahead import check_labels
from ldd.evaluation.checks import CONFUSION_NAME, FOLDER, JSON_NAME, NEIGHBOURS_NAME
from ldd.evaluation.checks.neighbours import COPY_RATIO
from ldd.evaluation.checks.summary import Checks, check_images, confusions_of
from ldd.evaluation.courses import teacher_of
from ldd.evaluation.features import ClassifierFeatures, trained_features
from ldd.networks import NetworkFactory
from ldd.runs.ending import Ending
from ldd.runs.verb import run_function
from ldd.runtime.devices import pick_device
from ldd.students.training import Lesson, check_networks
from ldd.students.training_set import Sampler, draws_for


def check(
    path: str,
    data: DistillationData,
    out: str | None = None,
    networks: dict[str, NetworkFactory] | None = None,
    protocol: str = "quick",
    repeats: int = 1,
    seed: int = 0,
    copy_ratio: float = COPY_RATIO,
    labels: Labels | None = None,
    features: ClassifierFeatures | None = None,
    other_data: bool = False,
) -> Ending:
    """Check the images of a distilled set: copies of real ones, coverage, features, per-class accuracy.

    Writes checks.json, neighbours.png (each image next to its nearest real ones) and confusion.png. As many random real
    images are compared with the set in every figure of coverage and features.

    Args:
        path: folder of a distilled set, or of a run, whose own data are taken where --data is missing.
        data: real images: training images for copies and coverage, the test split for confusion.
        out: folder for the results; null takes `checks` in the folder of the run or next to the set.
        networks: networks by name whose confusions are counted; null takes the protocol's.
        protocol: name of a shipped protocol, or path of a protocol file.
        repeats: networks of each kind; 0 counts no confusions.
        seed: of everything random.
        copy_ratio: an image is a copy below this share of the usual distance from a real image to the next.
        labels: the teacher of a protocol that has one.
        features: of images, besides their pixels, by a classifier of torchvision's architectures; null
            trains a small network on the real images.
        other_data: the test split is another than the set was made beside, on purpose.

    Raises:
        UserError: a set, data, protocol or folder that cannot be used.
    """
    if repeats < 0 or not 0 <= copy_ratio < float("inf"):
        raise UserError(f"repeats ({repeats}) and copy_ratio ({copy_ratio}) must be 0 or more")
    distilled, recipe = DistilledSet.load(path), Protocol.load(protocol)
    if not other_data:
        refuse_other_test_split(distilled, data.spec, data.fingerprints_of("test"))
    factories, device = networks or recipe.factories(), pick_device()
    check_labels(distilled, data, labels)
    sampler = _sampler(distilled, recipe, factories, data, labels) if repeats else None
    given = None if features is None else features.load(data.spec, device)
    folder = Path(out) if out is not None else _beside(path)
    check_writable(folder)
    data.setup()
    labeller = None if labels is None else labels.choose_for(distilled, data, recipe, seed)
    own = given or trained_features(data.train_images, data.spec, seed, device)
    found = check_images(distilled, data, own, copy_ratio, seed)
    if repeats:
        lesson = Lesson(data.spec, recipe, factories, seed, teacher_of(recipe, labeller))
        draws = draws_for(recipe, distilled, sampler, seed)
        training = StoredSet("distilled", distilled, samples=draws).training
        confused = confusions_of(lesson, training, data, distilled.counts, repeats, device)
        found = replace(found, confused=confused, protocol={"id": recipe.id, "hash": recipe.hash})
    return _written(found, folder, path)


def _written(found: Checks, folder: Path, path: str) -> Ending:
    with writing_in(folder):
        found.write(folder)
    rich.print(found)
    made = [
        file for name in (JSON_NAME, NEIGHBOURS_NAME, CONFUSION_NAME) if (file := folder / name).is_file()
    ]
    return Ending(made, ("report", path, "--out", folder / "report.html"))


def _sampler(
    distilled: DistilledSet,
    protocol: Protocol,
    networks: Mapping[str, NetworkFactory],
    data: DistillationData,
    labels: Labels | None,
) -> Sampler | None:
    """Return what draws the codes for the students; refuse now what these cannot be or cannot learn from."""
    check_networks(networks, data.spec)
    if labels is None:
        teacher_of(protocol, None)  # or refuses a protocol that has one
    return stored_sampler(distilled, protocol, pick_device())


def _beside(path: str) -> Path:
    """Return `checks` in the folder of the run, whether the run or its set was named."""
    refuse_name(path)
    found = Path(path)
    run = found.resolve().parent if (found / "manifest.json").is_file() else found
    return run / FOLDER


@contextmanager
def data_of_run(config: Path) -> Iterator[Path]:
    """Return a file with the section `data` of a run's configuration, while the block lasts.

    Raises:
        UserError: the configuration has none.
    """
    content = read_yaml(config, "give --data")
    section = content.get("data") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise UserError(f"{config} has no section data; give --data")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.yaml"
        file.write_text(yaml.safe_dump(section), encoding="utf-8")
        yield file


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb; the data of a run's own config.yaml are taken where none are named."""
    given = any(argument.startswith("--data") for argument in arguments)
    config = Path(arguments[0]) / "config.yaml" if arguments else Path()
    if not given and arguments and not arguments[0].startswith("-") and config.is_file():
        with data_of_run(config) as file:
            words = [*arguments, "--data", str(file)]
            return run_function(check, verb, words, data=True, typed=arguments, place=_beside)
    return run_function(check, verb, arguments, data=True, place=_beside)
