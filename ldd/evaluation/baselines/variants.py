"""Sets made of other sets: with soft labels, for as many training steps, without augmentation."""

from typing import final

from ldd.artefact.size import Storage
from ldd.evaluation.baselines.base import Baseline, Setting, blank, labelled_storage
from ldd.evaluation.results.rows import PLAIN
from ldd.students.training_set import TrainingSet


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
        images = setting.made(self.of, repeat).images
        return TrainingSet(images, labeller(images).float())

    def check(self, setting: Setting) -> None:
        """Refuse to label without a labeller, and what the other refuses."""
        setting.need_labeller(self.name)
        self.of.check(setting)

    def outline(self, repeat: int, setting: Setting) -> TrainingSet:
        """As many images as the other's, with soft labels."""
        return blank(len(self.of.outline(repeat, setting).images), setting, soft=True)

    def storage(self, given: TrainingSet, setting: Setting) -> Storage:
        """With the labels as they are stored."""
        return labelled_storage(given, setting, setting.need_labeller(self.name))


class _Trained(Baseline):
    """Another baseline's set, whose students are trained otherwise."""

    def __init__(self, of: Baseline, ending: str) -> None:
        self.of = of
        self.name = of.name + ending
        self.repeats, self.by_bytes = of.repeats, of.by_bytes

    def set_for(self, repeat: int, setting: Setting) -> TrainingSet:
        """The other's set."""
        return setting.made(self.of, repeat)

    def check(self, setting: Setting) -> None:
        """As the other."""
        self.of.check(setting)

    def outline(self, repeat: int, setting: Setting) -> TrainingSet:
        """As the other."""
        return self.of.outline(repeat, setting)

    def storage(self, given: TrainingSet, setting: Setting) -> Storage:
        """The other's."""
        return self.of.storage(given, setting)


@final
class EqualSteps(_Trained):
    """Another baseline, trained for as many steps of the optimiser as the distilled set's students take.

    Args:
        of: the other: more images than the distilled set has, or all.
    """

    equal_steps = True

    def __init__(self, of: Baseline) -> None:
        super().__init__(of, "_steps")


@final
class Plain(_Trained):
    """Another set, on which students train without augmentation.

    Args:
        of: the other.
    """

    augmented = False

    def __init__(self, of: Baseline) -> None:
        super().__init__(of, PLAIN)
        self.full_data, self.equal_steps = of.full_data, of.equal_steps
