"""Baselines of every report: as many images, bytes or training steps as the distilled set."""

from collections.abc import Callable, Sequence

from ldd.artefact.set import DistilledSet
from ldd.errors import UserError
from ldd.evaluation.baselines.base import (
    Baseline,
    Drawn,
    EqualBytes,
    FullReal,
    RandomReal,
    Setting,
    bytes_of_real,
)
from ldd.evaluation.baselines.chosen import EasyReal, NearestReal, PriorSamples
from ldd.evaluation.baselines.stored import StoredSet
from ldd.evaluation.baselines.variants import EqualSteps, SoftLabels
from ldd.evaluation.results.rows import DISTILLED
from ldd.runtime.classes import check_text, imported_class
from ldd.students.protocol import Protocol
from ldd.students.training_set import Size


def equal_baselines(
    distilled: DistilledSet, setting: Setting, protocol: Protocol
) -> tuple[tuple[Baseline, ...], dict[str, str]]:
    """Return all baselines that can be had, and the reasons why the others cannot, by name.

    They follow from the data, the set, its labels and its prior, so that all ranks and a resumed run have the same.

    Args:
        distilled: the set.
        setting: of its evaluation.
        protocol: says whether students learn from a set's own labels or from a teacher's.
    """
    chosen: list[Baseline] = []
    left_out: dict[str, str] = {}
    soft = distilled.soft_labels is not None or setting.labeller is not None
    steps = _other_steps(distilled, setting, protocol)
    found = candidates(distilled, own=not protocol.has_teacher, soft=soft, steps=steps)
    if protocol.has_teacher and setting.labeller is None:
        reason = f"protocol {protocol.id} has the labels of a teacher, and there is none; give --labels"
        return (), {baseline.name: reason for baseline in found}
    for baseline in found:
        try:
            baseline.size(0, setting)
        except UserError as error:
            left_out[baseline.name] = str(error)
        else:
            chosen.append(baseline)
    return tuple(chosen), left_out


def candidates(distilled: DistilledSet, *, own: bool, soft: bool, steps: bool) -> tuple[Baseline, ...]:
    """Return every kind of image at the set's number of images, its bytes and its training steps, and the full data.

    Where as many real images take as many bytes, or as many steps, one baseline stands for both. Where a teacher labels
    every crop, students do not learn from labels of their own set, and equally many images have equally many bytes.

    Args:
        distilled: the set.
        own: students learn from labels of their own set.
        soft: it has soft labels, or something gives others such.
        steps: its students take another number of steps than those of as many real images.
    """
    kinds = [kind() for kind in DRAWN.values()]
    chosen: list[Baseline] = list(kinds)
    if steps:
        chosen += map(EqualSteps, kinds)
    if own and soft:
        chosen += [SoftLabels(kind) for kind in kinds]
    if own and distilled.storage.total().bytes != len(distilled.images) * bytes_of_real(distilled.image_size):
        for_bytes = [EqualBytes(of=kind) for kind in kinds]
        chosen += [*for_bytes, *map(EqualSteps, for_bytes)]
    if own and soft:
        chosen += [EqualBytes(soft=True, of=kind) for kind in kinds]
    full = FullReal()
    return (*chosen, full, EqualSteps(full))


def _other_steps(distilled: DistilledSet, setting: Setting, protocol: Protocol) -> bool:
    """Return whether students of the set take another number of steps than those of as many real images."""
    budget, own = protocol.budget(distilled.counts), StoredSet(DISTILLED, distilled).size(0, setting)
    draws = protocol.num_draws(budget[0]) if protocol.draws_from(distilled) else 0
    sizes = own._replace(draws=draws), Size(len(distilled.images))
    return len({size.cost(protocol, *budget).steps for size in sizes}) > 1


_KINDS: tuple[Callable[[], Drawn], ...] = (RandomReal, NearestReal, EasyReal, PriorSamples)
DRAWN = {kind().name: kind for kind in _KINDS}
"""Kinds of images, by name."""

ENDINGS = ("_bytes", "_soft", "_steps")
"""Endings of names, in this order: as many bytes as the set, soft labels, as many training steps."""

NONE = ("", "none", "[]")
"""Ways to write on a command line that there are no baselines."""

EQUAL = "equal"
"""Stands for every baseline at equal images, bytes and steps that fits the set."""


def chosen_baselines(given: Sequence[Baseline] | str | None) -> tuple[Baseline, ...] | None:
    """Return the baselines that a setting gives, or names for `baselines_by_name`; None for all that can be had."""
    if given is None or given == EQUAL:
        return None
    if not isinstance(given, str):
        return tuple(given)
    if EQUAL in {name.strip() for name in given.split(",")}:
        raise UserError(f"baselines ({given}): equal stands for all that can be had; give it alone")
    return baselines_by_name(given)


def baselines_by_name(names: str, equal: Sequence[Baseline] = ()) -> tuple[Baseline, ...]:
    """Return baselines by their names on a command line, separated by commas; `none` or nothing for none.

    Args:
        names: of images (`random_real`, `nearest_real`, `easy_real`, `prior_samples`) with endings (`_bytes`, `_soft`,
            `_steps`), `full_real` with `_steps` or not, `equal` for all that fit the set, or dotted names of classes.
        equal: those that `equal` stands for (`ldd.evaluation.equal_baselines`).
    """
    chosen: dict[str, Baseline] = {}
    if names.strip() in NONE:
        return ()
    check_text("baselines", names, list[Baseline])
    for name in filter(None, (part.strip() for part in names.split(","))):
        chosen.update({baseline.name: baseline for baseline in (equal if name == EQUAL else (_one(name),))})
    return tuple(chosen.values())


def _one(name: str) -> Baseline:
    if name == f"{FullReal.name}_steps":
        return EqualSteps(FullReal())
    if name == FullReal.name:
        return FullReal()
    base = name
    endings: set[str] = set()
    for ending in reversed(ENDINGS):
        if base.endswith(ending):
            base, endings = base.removesuffix(ending), endings | {ending}
    if base in DRAWN:
        return _with_endings(DRAWN[base](), endings)
    try:
        found = imported_class(name, Baseline)
        baseline: Baseline | None = found() if found else None
    except (ImportError, TypeError):
        baseline = None
    if baseline is None:
        raise UserError(
            f"baselines: {name!r} is unknown; choose from {', '.join(DRAWN)} (each may end with "
            f"{', '.join(ENDINGS)}, in this order), {FullReal.name}, {FullReal.name}_steps, {EQUAL}, or give the "
            "dotted name of a Baseline class that needs no arguments"
        )
    return baseline


def _with_endings(drawn: Drawn, endings: set[str]) -> Baseline:
    baseline: Baseline = drawn
    if "_bytes" in endings:
        baseline = EqualBytes(soft="_soft" in endings, of=drawn)
    elif "_soft" in endings:
        baseline = SoftLabels(drawn)
    return EqualSteps(baseline) if "_steps" in endings else baseline
