"""Evaluation protocols: frozen, named recipes by which students are trained, so that numbers can be compared.

A protocol is a YAML file; the shipped ones lie in `ldd/students/protocols/`. Every result carries the protocol's id and
the hash of its contents.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast

from ldd.augmentation.siamese import SiameseAugmentation
from ldd.augmentation.views import Views
from ldd.disk.files import read_yaml
from ldd.disk.records import parse
from ldd.errors import UserError
from ldd.images import Labelled
from ldd.networks import Network, NetworkFactory
from ldd.networks.base import NetworkSpec
from ldd.runtime.classes import canonical, dotted_name, loaded_class

if TYPE_CHECKING:  # worker processes import this file
    from ldd.artefact.set import DistilledSet

WARM_UP_START = 1e-7
"""Share of the learning rate at which the warm-up starts (the released GLaD and LD3M code)."""

_STEP = 0.2  # what each of the two drops of `steps` leaves


def warm_up(epoch: int, epochs: int) -> float:
    """Return the share of the peak learning rate in `epoch` (from 0) of `epochs`.

    Linear warm-up from 1e-7 over the first half, then a cosine that would reach zero one step after the end:
    with h = floor(epochs / 2), `1e-7 + (1 - 1e-7) e / h` up to epoch h, then `(1 + cos(pi (e - h - 1) / h)) / 2`.
    So epochs h and h + 1 run at the peak, and the last of 1,000 at 4e-5 of it (released GLaD and LD3M evaluation).
    """
    half = max(1, epochs // 2)
    if epoch <= half:
        return WARM_UP_START + (1 - WARM_UP_START) * epoch / half
    return (1 + math.cos(math.pi * (epoch - half - 1) / half)) / 2


def drop(epoch: int, epochs: int) -> float:
    """Return 1 up to epoch floor(epochs / 2) and a tenth from the next on (MTT and D3, see also `released_drop`)."""
    return 1.0 if epoch <= epochs // 2 else 0.1


def released_drop(epoch: int, epochs: int) -> float:
    """Return 1 up to epoch floor((epochs - 1) / 2) + 1 and a tenth from the next on, as MTT's and D3's code counts.

    That code builds its optimiser anew at the drop, so that momentum starts from nothing there.
    """
    return 1.0 if epoch <= (epochs - 1) // 2 + 1 else 0.1


def steps(epoch: int, epochs: int) -> float:
    """Return 1/5 from epoch floor(2 E / 3) on and 1/25 from floor(5 E / 6) on (released IDC evaluation)."""
    return _STEP ** ((epoch >= 2 * epochs // 3) + (epoch >= 5 * epochs // 6))


def half_cosine(epoch: int, epochs: int) -> float:
    """Return (1 + cos(pi e / (2 E))) / 2: down to half of the peak, not to zero (released RDED evaluation)."""
    return (1 + math.cos(math.pi * epoch / epochs / 2)) / 2


def cosine(epoch: int, epochs: int) -> float:
    """Return (1 + cos(pi e / E)) / 2: to zero one step after the end (RD3, and released RethinkDC evaluation)."""
    return (1 + math.cos(math.pi * epoch / epochs)) / 2


Rates = Literal["warm_up", "drop", "released_drop", "steps", "half_cosine", "cosine"]
"""Schedules of the learning rate, by the names of the functions above."""

_RATES: dict[Rates, Callable[[int, int], float]] = {
    "warm_up": warm_up,
    "drop": drop,
    "released_drop": released_drop,
    "steps": steps,
    "half_cosine": half_cosine,
    "cosine": cosine,
}

FOLDER = Path(__file__).with_name("protocols")
"""Where the shipped protocol files lie."""

LEAST_EPOCHS = 2
"""Passes below which a student's rate would not leave its warm-up."""

_LATER_VIEWS = (
    "rand_augment",
)  # settings of views that the first protocols had not: at their default they stay out
_PROSE = ("source",)  # fields without effect on a result: they stay out of the hash
_CHOICES = {
    "rates": tuple(_RATES),
    "mean_images": ("always", "soft", "never"),
    "optimizer": ("sgd", "adamw", "muon"),
    "labels": ("own", "teacher"),
    "scores": ("none", "ddranking"),
}
_SWITCHES = ("weight_ema", "decay_vectors")
_LIMITS = {
    "epochs": LEAST_EPOCHS,
    "full_data_epochs": LEAST_EPOCHS,
    "batch_size": 1,
    "full_data_batch_size": 1,
    "test_every": 1,
    "looks": 0,
}


@dataclass(frozen=True)
class Budget:
    """How long, and in which batches, students learn from a set of a certain size.

    Attributes:
        epochs: passes; null takes the protocol's.
        batch_size: images per step; null takes the protocol's.
    """

    epochs: int | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Protocol:
    """How a student is trained and tested: an optimiser, a schedule of its rate, random views, cross-entropy.

    With soft labels q the loss is the mean of -sum_k q_k log p_k over a batch (as D3 and Qin et al., arXiv 2406.10485,
    train), with hard ones the same with q one-hot. The test split is used once, after the last epoch; no epoch,
    rate or network is chosen by it.

    Attributes:
        id: name that every result carries.
        epochs: passes over a small set.
        full_data_epochs: passes over the full real data (the upper bound), with the same schedule.
        batch_size: images per step.
        full_data_batch_size: images per step on the full real data; null takes batch_size.
        lr: peak learning rate.
        momentum: of SGD and Muon, or the first beta of AdamW (the second is 0.999).
        weight_decay: of the optimiser.
        augmentations: names of `SiameseAugmentation`'s strategies; one is drawn per batch, with parameters of its own
            for every sample.
        networks: name -> network, used where the user names none.
        network_lr: peak learning rates of single network classes, by dotted name; they replace `lr`. Names that begin
            with `ldd.networks.` must be classes there.
        weight_ema: quirk of the released LD3M code: test an average of the weights that is updated once per epoch,
            with decay min(0.995, 1 - 1/n) at the n-th update.
        test_every: test on every n-th image of the test split, in its order (class by class, then by path); 1 is all.
        rates: schedule of the learning rate: one of `warm_up`, `drop`, `released_drop`, `steps`, `half_cosine`,
            `cosine`.
        samples: where a set's codes have a spread, draws of each that are made before training; an epoch takes one.
            "fresh" makes as many as there are epochs, so that none comes twice; 0 trains on the mean images alone.
        mean_images: whether they take part as well as the draws: `always`, `soft` (with soft labels only, as in D3's
            released code) or `never`.
        optimizer: `sgd`, `adamw`, or `muon` (see `ldd.students.optimizers.MatrixMuon`).
        decay_vectors: whether weight decay also takes biases, gains and shifts.
        by_images: number of images per class -> epochs and batch size of sets with at most that many; larger sets take
            the protocol's. Where classes differ, the largest counts.
        views: random views in the place of `augmentations`, each image its own; null: none.
        cutmix: alpha of CutMix, which then mixes every batch; 0: none.
        labels: `own` (the set's) or `teacher`: what a labeller says of every mixed batch as the student sees it
            (one soft label a crop), with `temperature` for both.
        temperature: T: the loss compares softmax(logits / T) with the labels.
        looks: number of tests during training, evenly spread, on the selection split and on the test split; results
            then also give the accuracy of the epoch that is best on the selection split, and the best on the test one.
        scores: `ddranking` adds sets without augmentation and label- and augmentation-robust scores.
        source: where the numbers come from (prose; not part of the hash).
    """

    id: str
    epochs: int
    full_data_epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    augmentations: tuple[str, ...]
    networks: Mapping[str, NetworkSpec]
    network_lr: Mapping[str, float] = field(default_factory=dict)
    weight_ema: bool = False
    full_data_batch_size: int | None = None
    test_every: int = 1
    rates: Rates = "warm_up"
    samples: int | Literal["fresh"] = "fresh"
    mean_images: Literal["always", "soft", "never"] = "always"
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    decay_vectors: bool = True
    by_images: Mapping[int, Budget] = field(default_factory=dict)
    views: Views | None = None
    cutmix: float = 0.0
    labels: Literal["own", "teacher"] = "own"
    temperature: float = 1.0
    looks: int = 0
    scores: Literal["none", "ddranking"] = "none"
    source: str = ""

    def __post_init__(self) -> None:
        self._require(
            isinstance(self.id, str), "id", self.id, "be a name, in quotes where YAML reads it otherwise"
        )
        for name, least in _LIMITS.items():
            value = getattr(self, name)
            fits = _is_whole(value, least) or (value is None and name == "full_data_batch_size")
            self._require(fits, name, value, f"be a whole number of at least {least}")
        for name in _SWITCHES:
            self._require(type(getattr(self, name)) is bool, name, getattr(self, name), "be true or false")
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            self._require(value in known, name, value, f"be one of {', '.join(known)}")
        count = self.samples == "fresh" or _is_whole(self.samples, 0)
        self._require(count, "samples", self.samples, "be 'fresh' or at least 0")
        for images, budget in self.by_images.items():
            for name, value in asdict(budget).items():
                fits = _is_whole(images, 1) and (value is None or _is_whole(value, _LIMITS[name]))
                must = f"be a whole number of at least {_LIMITS[name]}, and the number of images at least 1"
                self._require(fits, f"by_images.{images}.{name}", value, must)
        if self.views is not None and self.augmentations:
            raise UserError(
                f"protocol {self.id}: views and augmentations ({', '.join(self.augmentations)}) exclude each other; "
                "leave one of them empty"
            )
        if self.has_teacher and self.scores == "ddranking":
            raise UserError(
                f"protocol {self.id}: scores (ddranking) compare sets with their own labels; give labels: own, or no "
                "scores"
            )
        SiameseAugmentation(self.augmentations)  # raises if it does not know a name
        for name, value in {"lr": self.lr, "temperature": self.temperature, **self.network_lr}.items():
            self._require(_is_number(value) and value > 0, name, value, "be a number above 0")
        momentum = self.momentum
        self._require(_is_number(momentum) and 0 <= momentum < 1, "momentum", momentum, "lie in [0, 1)")
        for name in ("weight_decay", "cutmix"):
            value = getattr(self, name)
            self._require(_is_number(value) and value >= 0, name, value, "be a number of 0 or more")
        for path in self.network_lr:  # others than ours are not imported here
            there = loaded_class(path, Network) or not path.startswith("ldd.networks.")
            must = "name networks that there are, as ldd.networks.VGG11"
            self._require(bool(there), "network_lr", path, must)

    def _require(self, holds: bool, name: str, value: object, must: str) -> None:
        if not holds:
            raise UserError(f"protocol {self.id}: {name} ({value}) must {must}")

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """Read a shipped protocol by name, or any by the path of its YAML file.

        Raises:
            UserError: no such protocol, or a file with missing, unknown or unusable keys.
        """
        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml"):
            path = FOLDER / f"{name_or_path}.yaml"
        if not path.is_file():
            raise UserError(
                f"protocol ({name_or_path}) is not known; choose from {', '.join(shipped())} or give the path of a "
                "YAML file"
            )
        read = read_yaml(path, "a protocol is a YAML file such as the shipped ones")
        content: dict[str, Any] = read if isinstance(read, dict) else {}
        required = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}
        unknown, missing = content.keys() - {f.name for f in fields(cls)}, required - content.keys()
        if unknown or missing:
            problems = [f"unknown {', '.join(sorted(unknown))}"] * bool(unknown)
            problems += [f"missing {', '.join(sorted(missing))}"] * bool(missing)
            raise UserError(
                f"protocol ({path}) has keys that do not fit: {'; '.join(problems)}; compare {FOLDER / 'quick.yaml'}"
            )
        try:
            return cls(
                **content | {name: _CONVERTED[name](content[name]) for name in content.keys() & _CONVERTED}
            )
        except UserError:
            raise
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"protocol ({path}) has a value of the wrong kind: {error}") from error

    @property
    def hash(self) -> str:
        """16 hex digits over all that has an effect; equal files under two names differ by their ids only.

        Settings at their default stay out, so that a new one leaves the hashes of older protocols as they were.
        """
        defaults = {f.name: f.default for f in fields(self) if f.default is not MISSING}
        defaults["by_images"] = {}
        content = {
            name: value
            for name, value in asdict(self).items()
            if name not in _PROSE and not (name in defaults and value == defaults[name])
        }
        if self.views is not None:
            own, least = asdict(self.views), asdict(Views())
            later = {name for name in _LATER_VIEWS if own[name] == least[name]}
            content["views"] = {name: value for name, value in own.items() if name not in later}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher labels every batch as the student sees it; else sets are learned with their own labels."""
        return self.labels == "teacher"

    def factories(self) -> dict[str, NetworkFactory]:
        """Return builders of the default networks by name."""
        return {name: spec.factory() for name, spec in self.networks.items()}

    def lr_at(self, epoch: int, epochs: int) -> float:
        """Return the share of the peak learning rate in `epoch` (from 0) of `epochs`."""
        return _RATES[self.rates](epoch, epochs)

    def forgets_after(self, epoch: int, epochs: int) -> bool:
        """Return whether momentum starts from nothing after `epoch`."""
        changes = self.lr_at(epoch + 1, epochs) != self.lr_at(epoch, epochs)
        return self.rates == "released_drop" and changes

    def peak_lr(self, network: type) -> float:
        """Return the peak learning rate of a network's class."""
        for path, lr in self.network_lr.items():
            if canonical(path) == dotted_name(network):
                return lr
        return self.lr

    def budget(self, counts: Sequence[int]) -> tuple[int, int]:
        """Return epochs and batch size for a set with these numbers of images per class."""
        fitting = [limit for limit in self.by_images if max(counts) <= limit]
        own = self.by_images[min(fitting)] if fitting else Budget()
        return own.epochs or self.epochs, own.batch_size or self.batch_size

    def full_data_budget(self) -> tuple[int, int]:
        """Return epochs and batch size for the full real data."""
        return self.full_data_epochs, self.full_data_batch_size or self.batch_size

    def draws_from(self, distilled: "DistilledSet") -> bool:
        """Return whether students learn from draws of the set's codes."""
        return distilled.is_distribution and self.samples != 0

    def num_draws(self, epochs: int) -> int:
        """Return the number of draws of each code that students need for `epochs`."""
        return epochs if self.samples == "fresh" else self.samples

    def test_part(self, split: Labelled) -> Labelled:
        """Return the images of the test split that students are tested on."""
        return Labelled(split.images[:: self.test_every], split.labels[:: self.test_every])

    def look_epochs(self, epochs: int) -> set[int]:
        """Return the epochs (from 0) after which a student is looked at: evenly, the last among them; maybe none."""
        count = min(self.looks, epochs)
        return {round((place + 1) * epochs / count) - 1 for place in range(count)}


def _views(value: Mapping[str, Any] | None) -> Views | None:
    if value is None:
        return None
    crop, random = value.get("crop_scale"), value.get("rand_augment")
    scale = None if crop is None else tuple(map(_number, crop))
    operations = None if random is None else tuple(map(_whole, random))
    try:
        return parse(Views, {**value, "crop_scale": scale, "rand_augment": operations})
    except UserError as error:
        raise UserError(f"views: {error}") from error


def _number(value: Any) -> Any:  # noqa: ANN401 - what is no number is left to the protocol to refuse
    return float(value) if type(value) in (str, int) else value


def _whole(value: Any) -> Any:  # noqa: ANN401 - likewise
    number = value if type(value) is int else _number(value)
    return int(number) if type(number) is float and number.is_integer() else number


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(cast("float", value))


def _is_whole(value: object, least: int) -> bool:
    return type(value) is int and value >= least


# What becomes of values of a file: another spelling (YAML reads 5e-2 as text), never another value. Others stay.
_CONVERTED: dict[str, Callable[[Any], Any]] = {
    "id": lambda value: str(value) if type(value) in (int, float) else value,
    "source": str,
    **dict.fromkeys(_LIMITS, _whole),
    **dict.fromkeys(("lr", "momentum", "weight_decay", "cutmix", "temperature"), _number),
    "augmentations": lambda names: tuple(map(str, names)),
    "networks": lambda specs: {str(name): NetworkSpec(**spec) for name, spec in specs.items()},
    "network_lr": lambda rates: {str(path): _number(rate) for path, rate in rates.items()},
    "by_images": lambda budgets: {_whole(images): Budget(**budget) for images, budget in budgets.items()},
    "views": _views,
}


def shipped() -> list[str]:
    """Return the names of the protocols in the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))
