"""Sets that stand beside the distilled one: what the same students learn without distillation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch

from ldd.artefact.set import DistilledSet
from ldd.artefact.size import Amount, Storage
from ldd.errors import UserError
from ldd.evaluation.results.rows import budget_name
from ldd.images import Labelled
from ldd.runtime.seeding import generator
from ldd.students.training_set import TrainingSet

if TYPE_CHECKING:
    from ldd.data.real import EvaluationData
    from ldd.labels.base import Labeller
    from ldd.priors import Prior

_HARD_LABEL = torch.int64.itemsize


@dataclass(frozen=True)
class Setting:
    """What an evaluation tells its baselines.

    Attributes:
        data: real images, set up.
        counts: K numbers of images per class of the distilled set: the budget.
        seed: of the evaluation.
        bytes: that the distilled set takes in the form in which students use it: the other budget.
        labeller: what gave the distilled set its soft labels, or None.
        prior: what the distilled set was made through, to draw plain samples of it, or None.
        device: where networks are run that a baseline needs.
        found: what baselines found out of the data for this evaluation, so that none works it out twice.
    """

    data: "EvaluationData"
    counts: Sequence[int]
    seed: int
    bytes: int = 0
    labeller: "Labeller | None" = None
    prior: "Prior | None" = None
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    found: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, distilled: DistilledSet, data: "EvaluationData", seed: int, **rest: Any) -> "Setting":  # noqa: ANN401 - fields
        """With the budgets of a distilled set; `rest` are other attributes."""
        return cls(data, distilled.counts, seed, distilled.storage.total().bytes, **rest)

    def made(self, baseline: "Baseline", repeat: int) -> TrainingSet:
        """A baseline's set for a repeat, made once: others are the same images with other labels or epochs."""
        key = (baseline, repeat)
        if key not in self.found:
            self.found[key] = TrainingSet(*baseline.set_for(repeat, self))
        return self.found[key]  # type: ignore[no-any-return]

    def need_labeller(self, name: str) -> "Labeller":
        """What labels the images of the baseline `name`.

        Raises:
            UserError: there is none.
        """
        if self.labeller is None:
            raise UserError(
                f"baselines: {name} needs what labelled the distilled set; give --labels, or leave it out"
            )
        return self.labeller


class Baseline(ABC):
    """A set of images to train students on. Subclasses are final.

    Attributes:
        name: what results call the set.
        repeats: students per network; None takes the evaluation's number.
        full_data: train for the protocol's `full_data_epochs` instead of its `epochs`.
        equal_steps: train for as many steps of the optimiser as the distilled set's students, to the nearest epoch; two
            epochs at least.
        augmented: False trains on the images as they are.
        by_bytes: as many images as the bytes of the distilled set and its own labels pay for.
    """

    name: str
    repeats: int | None = None
    full_data: bool = False
    equal_steps: bool = False
    augmented: bool = True
    by_bytes: bool = False

    @abstractmethod
    def set_for(self, repeat: int, setting: Setting) -> Labelled | TrainingSet:
        """Images (N, 3, H, W) uint8 with labels (N,) or (N, K) for the students of one repeat, on the CPU.

        Raises:
            UserError: the data cannot give such a set.
        """

    def check(self, setting: Setting) -> None:  # noqa: B027 - most fit everywhere
        """Refuse, before any work, what `set_for` would refuse.

        Raises:
            UserError: as `set_for`.
        """

    def outline(self, repeat: int, setting: Setting) -> TrainingSet:
        """As many images as `set_for` gives, with labels of the same kind; their content may be missing (for plans)."""
        return setting.made(self, repeat)

    def storage(self, given: TrainingSet, setting: Setting) -> Storage:
        """What one of its sets takes; to be overridden where labels are stored otherwise than `given` has them."""
        return Storage.of(
            setting.data.spec.num_classes,
            given.images.shape[-1],
            images=given.images,
            labels=[given.labels],
        )


class Drawn(Baseline):
    """Images that are picked or made by number: any number of each class, anew for each repeat."""

    @abstractmethod
    def pick(self, counts: Sequence[int], setting: Setting, *key: object) -> Labelled:
        """So many images of each class (sum(counts), 3, H, W) uint8, class-major, with hard labels.

        Args:
            counts: K numbers; none above `most`.
            setting: of the evaluation.
            *key: what random choices depend on, beside the setting's seed.

        Raises:
            UserError: the data cannot give them.
        """

    def most(self, setting: Setting) -> Sequence[float]:
        """Largest number that can be asked for, by class."""
        return setting.data.train_images.counts

    def counts(self, setting: Setting) -> Sequence[int]:
        """K numbers of images per class: those of the distilled set."""
        return setting.counts

    def check_counts(self, counts: Sequence[int], setting: Setting) -> None:
        """Refuse, before any work, what `pick` would refuse.

        Raises:
            UserError: as `pick`.
        """
        for label, count in enumerate(counts):
            setting.data.train_images.require(label, count, f"{self.name}: images per class")

    def check(self, setting: Setting) -> None:
        """Refuse what the data cannot give."""
        self.check_counts(self.counts(setting), setting)

    def outline(self, repeat: int, setting: Setting) -> TrainingSet:
        """Nothing is picked."""
        return blank(sum(self.counts(setting)), setting)

    def set_for(self, repeat: int, setting: Setting) -> Labelled:
        """As many of each class as the distilled set has."""
        return self.pick(self.counts(setting), setting, self.name, repeat)


def blank(count: int, setting: Setting, *, soft: bool = False) -> TrainingSet:
    """So many images of one black one, which take no memory, with hard or soft labels."""
    spec = setting.data.spec
    image = torch.zeros(1, 3, spec.image_size, spec.image_size, dtype=torch.uint8)
    labels = (
        torch.zeros(1, spec.num_classes).expand(count, -1) if soft else torch.zeros(count, dtype=torch.int64)
    )
    return TrainingSet(image.expand(count, -1, -1, -1), labels)


@final
class RandomReal(Drawn):
    """As many real images per class as the distilled set has, from the whole training split; a new draw per repeat.

    Args:
        images_per_class: another number; its images are the first of those that a larger one draws.

    Raises:
        UserError: fewer than one.
    """

    name: str = "random_real"

    def __init__(self, images_per_class: int | None = None) -> None:
        if images_per_class is not None:
            if images_per_class < 1:
                raise UserError(f"images_per_class of random_real ({images_per_class}) must be at least 1")
            self.name = budget_name(self.name, images_per_class)
        self.images_per_class = images_per_class

    def pick(self, counts: Sequence[int], setting: Setting, *key: object) -> Labelled:
        """Draws without replacement; the classes' draws follow from (seed, key, label)."""
        wanted = f"{self.name}: images per class"
        return setting.data.train_images.draw_set(counts, wanted, setting.seed, *key)

    def counts(self, setting: Setting) -> Sequence[int]:
        """K numbers of images per class."""
        each = self.images_per_class
        return setting.counts if each is None else [each] * len(setting.counts)

    def set_for(self, repeat: int, setting: Setting) -> Labelled:
        """The classes' draws follow from (seed, repeat, label)."""
        return self.pick(self.counts(setting), setting, "random real", repeat)


@final
class EqualBytes(Baseline):
    """As many images as the bytes of the distilled set pay for, its labels included; anew per repeat.

    An image is charged 3 x H x W bytes and 8 for its label, a soft label as it is stored. All classes get as many
    images, or one more (drawn at random which); a class gives at most all that there are of it.

    Args:
        soft: with soft labels from what labelled the distilled set.
        of: which images; None takes random real ones.
    """

    by_bytes = True

    def __init__(self, soft: bool = False, of: Drawn | None = None) -> None:
        self.soft = soft
        self.of = RandomReal() if of is None else of
        self.name = f"{self.of.name}_bytes{'_soft' * soft}"

    def counts(self, repeat: int, setting: Setting) -> list[int]:
        """K numbers of images per class; which classes get one more follows from (seed, repeat).

        Raises:
            UserError: too few bytes for one image, or soft labels without a labeller.
        """
        spec = setting.data.spec
        n = setting.bytes // (self._bytes_per_label(setting) + 3 * spec.image_size**2)
        if n < 1:
            raise UserError(
                f"baselines: {self.name} has {setting.bytes} bytes, which is less than one real image; leave it out"
            )
        each, more = divmod(n, spec.num_classes)
        order = torch.randperm(
            spec.num_classes, generator=generator(setting.seed, self.name, repeat)
        ).tolist()
        counts = [each] * spec.num_classes
        for label in order[:more]:
            counts[label] += 1
        return [int(min(count, there)) for count, there in zip(counts, self.of.most(setting), strict=True)]

    def check(self, setting: Setting) -> None:
        """Refuse what the bytes, the labels or the images cannot give."""
        self.of.check_counts(self.counts(0, setting), setting)

    def outline(self, repeat: int, setting: Setting) -> TrainingSet:
        """Nothing is picked."""
        return blank(sum(self.counts(repeat, setting)), setting, soft=self.soft)

    def set_for(self, repeat: int, setting: Setting) -> TrainingSet:
        """Which classes get one more follows from (seed, repeat).

        Raises:
            UserError: too few bytes for one image, soft labels without a labeller, or what the images' kind raises.
        """
        drawn, labels = self.of.pick(self.counts(repeat, setting), setting, self.name, repeat)
        if not self.soft:
            return TrainingSet(drawn, labels)
        return TrainingSet(drawn, setting.need_labeller(self.name)(drawn).float())

    def storage(self, given: TrainingSet, setting: Setting) -> Storage:
        """With soft labels as they are stored."""
        return labelled_storage(given, setting, setting.need_labeller(self.name) if self.soft else None)

    def _bytes_per_label(self, setting: Setting) -> int:
        return _HARD_LABEL + (setting.need_labeller(self.name).bytes_per_label if self.soft else 0)


def labelled_storage(given: TrainingSet, setting: Setting, labeller: "Labeller | None") -> Storage:
    """What images and hard labels take, and one soft label of `labeller` each, as it is stored."""
    spec, n = setting.data.spec, len(given.images)
    floats, bytes_each = (labeller.floats_per_label, labeller.bytes_per_label) if labeller else (0, 0)
    labels = Amount(n * floats, n * (_HARD_LABEL + bytes_each))
    images = Amount.of([given.images], pixels=True)
    return Storage(spec.num_classes, spec.image_size, images=images, labels=labels)


@final
class FullReal(Baseline):
    """The whole training split, before any pruning: the upper bound.

    Args:
        repeats: students per network.

    Raises:
        UserError: fewer than one repeat.
    """

    name: str = "full_real"
    full_data = True

    def __init__(self, repeats: int = 1) -> None:
        if repeats < 1:
            raise UserError(f"repeats of full_real ({repeats}) must be at least 1")
        self.repeats = repeats

    def set_for(self, repeat: int, setting: Setting) -> Labelled:
        """The same images for every repeat."""
        return Labelled(setting.data.train_images.images, setting.data.train_images.labels)
