"""All checks of the images of one set, and the files and the table that show them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from rich.table import Table
from rich.text import Text

from ldd.artefact.identity import identity
from ldd.artefact.set import DistilledSet
from ldd.data.real import EvaluationData
from ldd.disk.files import atomic_file, write_json
from ldd.evaluation.baselines.base import RandomReal, Setting
from ldd.evaluation.checks import CONFUSION_NAME, JSON_NAME, NEIGHBOURS_NAME
from ldd.evaluation.checks.confusion import Confusion, confusions
from ldd.evaluation.checks.neighbours import by_pixels, nearest_real
from ldd.evaluation.checks.pictures import draw_confusions, draw_neighbours
from ldd.evaluation.checks.spread import frechet_distance, spread_of
from ldd.evaluation.features import FeatureNetwork
from ldd.images import ClassInfo, Labelled
from ldd.students.training import Lesson, Student, one_thread
from ldd.students.training_set import TrainingSet


@dataclass(frozen=True)
class Checks:
    """What the checks of a set have found: the `facts` of `checks.json`, pictures, and confusions of students."""

    facts: Mapping[str, Any]
    neighbours: Image
    classes: Sequence[ClassInfo]
    confused: Sequence[Confusion] = ()
    protocol: Mapping[str, str] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return what `checks.json` holds."""
        found = {**self.facts, "classes": [info.name for info in self.classes]}
        if self.confused:
            found["confusion"] = {one.network: one.summary(self.classes) for one in self.confused}
            found["protocol"] = dict(self.protocol)
        return found

    def write(self, folder: Path) -> None:
        """Write `checks.json`, `neighbours.png` and, where there are any confusions, `confusion.png`."""
        if self.confused:
            with atomic_file(folder / CONFUSION_NAME) as beside:
                draw_confusions(self.confused, self.classes).savefig(beside, format="png", dpi=110)
        with atomic_file(folder / NEIGHBOURS_NAME) as beside:
            self.neighbours.save(beside, format="PNG")
        write_json(folder / JSON_NAME, self.summary())

    def __rich__(self) -> Table:
        """Return a table of what matters most."""
        table = Table(title="Checks of the images", show_header=True)
        for name in ("check", *self.facts["images"]):
            table.add_column(name, justify="left" if name == "check" else "right")
        for key in ("coverage", "density", "diversity", "frechet_distance"):
            values = [figures[key] for figures in self.facts["images"].values()]
            cells = ("needs 2 a class" if value is None else f"{value:.3f}" for value in values)
            table.add_row(key.replace("_", " "), *cells)
        for name, copies in self.facts["copies"].items():
            text = f"{copies['copies']} of {len(copies['images'])}, median ratio {copies['median_ratio']:.2f}"
            table.add_row(f"copies by {name}", text, "")
        for confusion in self.confused:
            scores = {n: score for n, score in enumerate(confusion.per_class) if score is not None}
            worst = min(scores, key=lambda n: scores[n])
            name = self.classes[worst].name
            text = f"{100 * confusion.accuracy:.1f} %, worst {name} {100 * scores[worst]:.1f} %"
            table.add_row(Text(f"accuracy of {confusion.network}"), Text(text), "")
        return table


def check_images(
    distilled: DistilledSet, data: EvaluationData, features: FeatureNetwork, copy_ratio: float, seed: int
) -> Checks:
    """Look for copies, and measure coverage and features of a set and of equally many random real images."""
    stored, distilled = distilled, distilled.unpacked()
    real = data.train_images
    real_points, own_points = features(real.images), features(distilled.images)
    random = RandomReal().set_for(0, Setting(data, distilled.counts, seed))
    points = {
        "distilled": (own_points, distilled.labels),
        RandomReal.name: (features(random.images), random.labels),
    }
    measures = {
        "pixels": by_pixels(distilled.images, distilled.labels, real),
        "features": nearest_real(own_points, distilled.labels, real_points, real),
    }
    facts = {
        "features": features.name,
        "images": {
            name: {
                **asdict(spread_of(own, labels, real_points, real.labels)),
                "frechet_distance": frechet_distance(own, real_points),
            }
            for name, (own, labels) in points.items()
        },
        "copies": {name: found.summary(copy_ratio) for name, found in measures.items()},
        "set": identity(stored),
        "seed": seed,
        "test_split_fingerprint": data.spec.fingerprint,
    }
    names = [data.spec.classes[label].name for label in distilled.labels.tolist()]
    picture = draw_neighbours(distilled.images, real.images, measures, copy_ratio, names)
    return Checks(facts, picture, data.spec.classes)


def confusions_of(
    lesson: Lesson,
    training: TrainingSet,
    data: EvaluationData,
    counts: Sequence[int],
    repeats: int,
    device: torch.device,
) -> list[Confusion]:
    """Train students of each network on a set with `counts` of each class, and count their confusions."""
    epochs, batch_size = lesson.protocol.budget(counts)
    split = lesson.protocol.test_part(Labelled(data.test_images.images, data.test_images.labels))
    test = Labelled(split.images.to(device), split.labels.to(device))
    students = [
        Student("distilled", name, repeat, epochs, batch_size)
        for name in lesson.factories
        for repeat in range(repeats)
    ]
    with one_thread(device):
        return confusions(lesson, training.to(device), test, students)
