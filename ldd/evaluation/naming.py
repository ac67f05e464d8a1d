"""Baselines by name, as a command line gives them."""

import pkgutil
from collections.abc import Callable, Sequence

from ldd.errors import UserError
from ldd.evaluation.baselines import Baseline, Drawn, EqualBytes, FullReal, RandomReal
from ldd.evaluation.chosen import EasyReal, NearestReal, PriorSamples
from ldd.evaluation.variants import EqualSteps, SoftLabels

DRAWN: dict[str, Callable[[], Drawn]] = {
    RandomReal.name: RandomReal,
    NearestReal.name: NearestReal,
    EasyReal.name: EasyReal,
    PriorSamples.name: PriorSamples,
}
"""Kinds of images, by name."""

ENDINGS = ("_bytes", "_soft", "_steps")
"""What a name may end with, in this order: as many bytes as the set, soft labels, as many training steps."""

EQUAL = "equal"
"""Stands for every baseline at equal images, bytes and steps that fits the set."""


def baselines_by_name(names: str, equal: Sequence[Baseline] = ()) -> tuple[Baseline, ...]:
    """Baselines from a command line, separated by commas; empty for none.

    Args:
        names: of images (`random_real`, `nearest_real`, `easy_real`, `prior_samples`) with endings (`_bytes`, `_soft`,
            `_steps`), `full_real` with `_steps` or not, `equal` for all that fit the set, or dotted names of classes.
        equal: those that `equal` stands for (`ldd.evaluation.equal_baselines`).

    Raises:
        UserError: a name that is none of these.
    """
    chosen: dict[str, Baseline] = {}
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
        found = pkgutil.resolve_name(name)()
    except (ImportError, AttributeError, ValueError, TypeError):
        found = None
    if not isinstance(found, Baseline):
        raise UserError(
            f"baselines: {name!r} is unknown; choose from {', '.join(DRAWN)} (each may end with "
            f"{', '.join(ENDINGS)}, in this order), {FullReal.name}, {FullReal.name}_steps, {EQUAL}, or give the "
            "dotted name of a Baseline class that needs no arguments"
        )
    return found


def _with_endings(drawn: Drawn, endings: set[str]) -> Baseline:
    baseline: Baseline = drawn
    if "_bytes" in endings:
        baseline = EqualBytes(soft="_soft" in endings, of=drawn)
    elif "_soft" in endings:
        baseline = SoftLabels(drawn)
    return EqualSteps(baseline) if "_steps" in endings else baseline
