"""Sets made of other sets: with soft labels, for as many training steps, without augmentation."""

from typing import final

from ldd.classes import Labelled
from ldd.evaluation.baselines import Baseline, Setting, labelled_storage
from ldd.evaluation.robustness import PLAIN
from ldd.evaluation.training_set import TrainingSet
from ldd.storage import Storage


@final
class SoftLabels(Baseline):
    """Another baseline's images with one soft label each, from what labelled the distilled set.

    Args:
        of: the other.
    """

    def __init__(self, of: Baseline) -> None:
        self.of = of
        self.name = f"{of.name}_soft"
        self.repeats, self.full_data, self.equal_steps = of.repeats, of.full_data, of.equal_steps

    def set_for(self, repeat: int, setting: Setting) -> TrainingSet:
        """The other's images.

        Raises:
            UserError: there is no labeller, or what the other raises.
        """
        labeller = setting.need_labeller(self.name)
        images = TrainingSet(*self.of.set_for(repeat, setting)).images
        return TrainingSet(images, labeller(images).float())

    def storage(self, given: TrainingSet, setting: Setting) -> Storage:
        """With the labels as they are stored."""
        return labelled_storage(given, setting, setting.need_labeller(self.name))


@final
class EqualSteps(Baseline):
    """Another baseline, trained for as many steps of the optimiser as the distilled set's students take.

    Args:
        of: the other: more images than the distilled set has, or all.
    """

    equal_steps = True

    def __init__(self, of: Baseline) -> None:
        self.of = of
        self.name = f"{of.name}_steps"
        self.repeats = of.repeats

    def set_for(self, repeat: int, setting: Setting) -> Labelled | TrainingSet:
        """The other's set."""
        return self.of.set_for(repeat, setting)

    def storage(self, given: TrainingSet, setting: Setting) -> Storage:
        """The other's."""
        return self.of.storage(given, setting)


@final
class Plain(Baseline):
    """Another set, on which students train without augmentation.

    Args:
        of: the other.
    """

    augmented = False

    def __init__(self, of: Baseline) -> None:
        self.of = of
        self.name = of.name + PLAIN
        self.repeats, self.full_data, self.equal_steps = of.repeats, of.full_data, of.equal_steps

    def set_for(self, repeat: int, setting: Setting) -> Labelled | TrainingSet:
        """The other's set."""
        return self.of.set_for(repeat, setting)

    def storage(self, given: TrainingSet, setting: Setting) -> Storage:
        """The other's."""
        return self.of.storage(given, setting)
