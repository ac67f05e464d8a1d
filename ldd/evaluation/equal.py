"""What every report compares with: baselines at the set's number of images, its bytes and its training steps."""

from ldd.distilled import DistilledSet
from ldd.errors import UserError
from ldd.evaluation.baselines import Baseline, Drawn, EqualBytes, FullReal, RandomReal, Setting
from ldd.evaluation.chosen import EasyReal, NearestReal, PriorSamples
from ldd.evaluation.protocols import Protocol
from ldd.evaluation.variants import EqualSteps, SoftLabels


def equal_baselines(
    distilled: DistilledSet, setting: Setting, protocol: Protocol
) -> tuple[tuple[Baseline, ...], dict[str, str]]:
    """All candidates that can be had, and why the others cannot (by name).

    It follows from the data, the set, its labels and its prior, so that all ranks and a resumed run have the same.

    Args:
        distilled: the set.
        setting: of its evaluation.
        protocol: whether students learn from a set's own labels, or a teacher's.
    """
    chosen: list[Baseline] = []
    left_out: dict[str, str] = {}
    soft = distilled.soft_labels is not None or setting.labeller is not None
    found = candidates(distilled, own=protocol.labels == "own", soft=soft)
    if protocol.labels == "teacher" and setting.labeller is None:
        reason = f"protocol {protocol.id} has the labels of a teacher, and there is none; give --labels"
        return (), {baseline.name: reason for baseline in found}
    for baseline in found:
        try:
            baseline.check(setting)
        except UserError as error:
            left_out[baseline.name] = str(error)
        else:
            chosen.append(baseline)
    return tuple(chosen), left_out


def candidates(distilled: DistilledSet, *, own: bool = True, soft: bool) -> tuple[Baseline, ...]:
    """Every kind of image at the set's number of images, its bytes and its training steps, and the full data.

    Where the set is nothing but images with hard labels, as many images are as many bytes and steps, and stand for all
    three.

    Args:
        distilled: the set.
        own: students learn from the labels of their sets. Where a teacher labels every crop, the bytes of labels grow
            with the images, so that as many images stand for as many bytes again.
        soft: soft labels join in.
    """
    kinds: list[Drawn] = [RandomReal(), NearestReal(), EasyReal(), PriorSamples()]
    chosen: list[Baseline] = list(kinds)
    if own and soft:
        chosen += [SoftLabels(kind) for kind in kinds]
    if own and (distilled.soft_labels is not None or distilled.is_distribution):
        for_bytes = [EqualBytes(of=kind) for kind in kinds]
        chosen += [*for_bytes, *map(EqualSteps, for_bytes)]
    if own and soft:
        chosen += [EqualBytes(soft=True, of=kind) for kind in kinds]
    full = FullReal()
    return (*chosen, full, EqualSteps(full))
