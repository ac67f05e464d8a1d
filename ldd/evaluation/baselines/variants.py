"""Baselines made of other baselines: with soft labels, trained for equally many steps, or without augmentation."""

from collections.abc import Sequence
from typing import final

from ldd.artefact.size import Storage
from ldd.evaluation.baselines.base import Baseline, Setting, relabelled
from ldd.evaluation.results.rows import PLAIN
from ldd.students.training_set import Size, TrainingSet


class _Of(Baseline):
    """Another baseline's set and all that is known of it, but for what a subclass changes."""

    def __init__(self, of: Baseline, ending: str) -> None:
        self.of = of
        self.name = of.name + ending
        self.repeats, self.augmented, self.by_bytes = of.repeats, of.augmented, of.by_bytes
        self.full_data, self.equal_steps = of.full_data, of.equal_steps

    def set_for(self, repeat: int, setting: Setting) -> TrainingSet:
        """Return the set of the other."""
        return setting.made(self.of, repeat)

    def per_class(self, setting: Setting) -> Sequence[int]:
        """Return the numbers of the other."""
        return self.of.per_class(setting)

    def size(self, repeat: int, setting: Setting) -> Size:
        """Return the size of the other."""
        return self.of.size(repeat, setting)

    def storage(self, given: TrainingSet, setting: Setting) -> Storage:
        """Return the storage of the other."""
        return self.of.storage(given, setting)


@final
class SoftLabels(_Of):
    """Another baseline's images with one soft label each, from the labeller of the distilled set.

    Args:
        of: the other.
    """

    def __init__(self, of: Baseline) -> None:
        super().__init__(of, "_soft")

    def set_for(self, repeat: int, setting: Setting) -> TrainingSet:
        """Label the images of the other.

        Raises:
            UserError: there is no labeller, or what the other raises.
        """
        labeller = setting.need_labeller(self.name)
        images = setting.made(self.of, repeat).images
        return TrainingSet(images, labeller(images).float())

    def size(self, repeat: int, setting: Setting) -> Size:
        """Count the images of the other."""
        setting.need_labeller(self.name)
        return Size(self.of.size(repeat, setting).images, soft=True)

    def storage(self, given: TrainingSet, setting: Setting) -> Storage:
        """Charge the images as the other does, and the labels as they are stored."""
        own = self.of.storage(given, setting)
        return relabelled(own, len(given.images), setting.need_labeller(self.name))


@final
class EqualSteps(_Of):
    """Another baseline, whose students take as many steps of the optimiser as the distilled set's.

    Args:
        of: the other, usually with more images than the distilled set.
    """

    def __init__(self, of: Baseline) -> None:
        super().__init__(of, "_steps")
        self.equal_steps = True

    def per_class(self, setting: Setting) -> Sequence[int]:
        """Return the numbers of the distilled set, whose batches they take."""
        return setting.counts


@final
class Plain(_Of):
    """Another set, on which students train without augmentation.

    Args:
        of: the other.
    """

    def __init__(self, of: Baseline) -> None:
        super().__init__(of, PLAIN)
        self.augmented = False
