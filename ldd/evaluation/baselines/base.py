"""Baselines: sets that the same students learn without distillation."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch

from ldd.artefact.set import DistilledSet
from ldd.artefact.size import Amount, Storage
from ldd.errors import UserError, check_at_least
from ldd.evaluation.results.rows import budget_name
from ldd.images import Labelled
from ldd.runtime.seeding import generator
from ldd.students.training_set import Size, TrainingSet

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
        bytes: size of the distilled set in the form that students use: the other budget.
        labeller: gave the distilled set its soft labels, or None.
        prior: the distilled set was made through it, and plain samples can be drawn from it; or None.
        device: where a baseline runs the networks that it needs.
        found: results that baselines share, so that nothing is worked out twice.
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
        """Return the setting for a distilled set and its budgets; `rest` are other attributes."""
        return cls(data, distilled.counts, seed, distilled.storage.total().bytes, **rest)

    def made(self, baseline: "Baseline", repeat: int) -> TrainingSet:
        """Return a baseline's set for a repeat, made once: other baselines give the same images other labels."""
        key = (baseline, repeat)
        if key not in self.found:
            self.found[key] = TrainingSet(*baseline.set_for(repeat, self))
        return self.found[key]  # type: ignore[no-any-return]

    def need_labeller(self, name: str) -> "Labeller":
        """Return the labeller, which the baseline `name` needs.

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
        name: of the set in results.
        repeats: students per network; None takes the evaluation's number.
        full_data: train for the protocol's `full_data_epochs` instead of its `epochs`.
        equal_steps: train for as many steps of the optimiser as the distilled set's students, to the nearest epoch, but
            for two epochs at least.
        augmented: False trains on the images as they are.
        by_bytes: has as many images as the bytes of the distilled set and its own labels pay for.
    """

    name: str
    repeats: int | None = None
    full_data: bool = False
    equal_steps: bool = False
    augmented: bool = True
    by_bytes: bool = False

    @abstractmethod
    def set_for(self, repeat: int, setting: Setting) -> Labelled | TrainingSet:
        """Return images (N, 3, H, W) uint8 with labels (N,) or (N, K) for the students of one repeat, on the CPU.

        Raises:
            UserError: the data cannot give such a set.
        """

    def size(self, repeat: int, setting: Setting) -> Size:
        """Return how much `set_for` gives; override it where this is known before the set is made.

        Raises:
            UserError: now what `set_for` would raise later.
        """
        return setting.made(self, repeat).size

    def per_class(self, setting: Setting) -> Sequence[int]:
        """Return K numbers of images per class, from which a protocol may choose epochs: the distilled set's.

        Override it where the set has other numbers.

        Raises:
            UserError: as `size`.
        """
        return setting.counts

    def storage(self, given: TrainingSet, setting: Setting) -> Storage:
        """Return what one of its sets takes; override it where labels are stored in another form than in `given`."""
        size = given.images.shape[-1]
        return Storage.of(setting.data.spec.num_classes, size, images=given.images, labels=[given.labels])


class Drawn(Baseline):
    """Images that are picked or made, any number of each class, anew for each repeat."""

    @abstractmethod
    def pick(self, counts: Sequence[int], setting: Setting, *key: object) -> Labelled:
        """Return images (sum(counts), 3, H, W) uint8, class-major, with hard labels.

        Args:
            counts: K numbers of images per class; none above `most`.
            setting: of the evaluation.
            *key: with the setting's seed, what random choices follow from.

        Raises:
            UserError: the data cannot give them.
        """

    def most(self, setting: Setting) -> Sequence[float]:
        """Return the largest number of images that can be asked for, by class."""
        return setting.data.train_images.counts

    def counts(self, setting: Setting) -> Sequence[int]:
        """Return K numbers of images per class, by default the distilled set's."""
        return setting.counts

    def per_class(self, setting: Setting) -> Sequence[int]:
        """Return `counts`."""
        return self.counts(setting)

    def check_counts(self, counts: Sequence[int], setting: Setting) -> None:
        """Raise now what `pick` would raise later.

        Raises:
            UserError: as `pick`.
        """
        for label, count in enumerate(counts):
            setting.data.train_images.require(label, count, f"{self.name}: images per class")

    def size(self, repeat: int, setting: Setting) -> Size:
        """Count the images; none is picked."""
        counts = self.counts(setting)
        self.check_counts(counts, setting)
        return Size(sum(counts))

    def set_for(self, repeat: int, setting: Setting) -> Labelled:
        """Pick as many of each class as the distilled set has."""
        return self.pick(self.counts(setting), setting, self.name, repeat)


@final
class RandomReal(Drawn):
    """As many real images per class as the distilled set has, from the whole training split; a new draw per repeat.

    Args:
        images_per_class: another number; its images are the first of those that a larger number draws.

    Raises:
        UserError: fewer than one.
    """

    name: str = "random_real"

    def __init__(self, images_per_class: int | None = None) -> None:
        check_at_least(1, "random_real", images_per_class=images_per_class)
        if images_per_class is not None:
            self.name = budget_name(self.name, images_per_class)
        self.images_per_class = images_per_class

    def pick(self, counts: Sequence[int], setting: Setting, *key: object) -> Labelled:
        """Draw without replacement; the draws of a class follow from (seed, key, label)."""
        wanted = f"{self.name}: images per class"
        return setting.data.train_images.draw_set(counts, wanted, setting.seed, *key)

    def counts(self, setting: Setting) -> Sequence[int]:
        """Return K numbers of images per class."""
        each = self.images_per_class
        return setting.counts if each is None else [each] * len(setting.counts)

    def set_for(self, repeat: int, setting: Setting) -> Labelled:
        """Draw anew; the draws of a class follow from (seed, repeat, label)."""
        return self.pick(self.counts(setting), setting, "random real", repeat)


@final
class EqualBytes(Baseline):
    """As many images as the bytes of the distilled set and its labels pay for; anew per repeat.

    An image is charged 3 x H x W bytes and 8 for its label, a soft label as it is stored. All classes get equally many
    images, up to one more for some, which are drawn at random; a class gives at most all the images that it has.

    Args:
        soft: give them soft labels from what labelled the distilled set.
        of: which images; None takes random real ones.
    """

    by_bytes = True

    def __init__(self, soft: bool = False, of: Drawn | None = None) -> None:
        self.soft = soft
        self.of = RandomReal() if of is None else of
        self.name = f"{self.of.name}_bytes{'_soft' * soft}"

    def counts(self, repeat: int, setting: Setting) -> list[int]:
        """Return K numbers of images per class; which classes get one more follows from (seed, repeat).

        Raises:
            UserError: too few bytes for one image, or soft labels without a labeller.
        """
        spec, soft = setting.data.spec, 0
        if self.soft:
            soft = setting.need_labeller(self.name).amount_per_label.bytes
        n = setting.bytes // (bytes_of_real(spec.image_size) + soft)
        if n < 1:
            raise UserError(
                f"baselines: {self.name} has {setting.bytes} bytes, which is less than one real image; leave it out"
            )
        each, more = divmod(n, spec.num_classes)
        draws = generator(setting.seed, self.name, repeat)
        lucky = set(torch.randperm(spec.num_classes, generator=draws)[:more].tolist())
        most = enumerate(self.of.most(setting))
        return [int(min(each + (label in lucky), there)) for label, there in most]

    def per_class(self, setting: Setting) -> Sequence[int]:
        """Return the `counts` of the first repeat; those of others differ by the classes that get one more."""
        return self.counts(0, setting)

    def size(self, repeat: int, setting: Setting) -> Size:
        """Count the images; none is picked."""
        counts = self.counts(repeat, setting)
        self.of.check_counts(counts, setting)
        return Size(sum(counts), soft=self.soft)

    def set_for(self, repeat: int, setting: Setting) -> TrainingSet:
        """Pick as many as the bytes pay for.

        Raises:
            UserError: too few bytes for one image, soft labels without a labeller, or what picking raises.
        """
        drawn, labels = self.of.pick(self.counts(repeat, setting), setting, self.name, repeat)
        if not self.soft:
            return TrainingSet(drawn, labels)
        return TrainingSet(drawn, setting.need_labeller(self.name)(drawn).float())

    def storage(self, given: TrainingSet, setting: Setting) -> Storage:
        """Charge soft labels as they are stored."""
        labeller = setting.need_labeller(self.name) if self.soft else None
        return relabelled(super().storage(given, setting), len(given.images), labeller)


def bytes_of_real(size: int) -> int:
    """Return what a real image of `size` pixels a side takes with its hard label."""
    return 3 * size**2 + _HARD_LABEL


def relabelled(storage: Storage, images: int, labeller: "Labeller | None") -> Storage:
    """Return what a set takes with a hard label for each of its images, and one of `labeller` as it is stored."""
    each = labeller.amount_per_label if labeller else Amount()
    return replace(storage, labels=Amount(images * each.floats, images * (_HARD_LABEL + each.bytes)))


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
        check_at_least(1, "full_real", repeats=repeats)
        self.repeats = repeats

    def set_for(self, repeat: int, setting: Setting) -> Labelled:
        """Return the same images for every repeat."""
        return Labelled(setting.data.train_images.images, setting.data.train_images.labels)
