"""The sets of an evaluation: the one in question in its forms, and those that scores and budgets need beside it."""

from collections.abc import Sequence

import torch

from ldd.artefact.set import DistilledSet, first_rows
from ldd.errors import UserError
from ldd.evaluation.baselines.base import Baseline, FullReal, RandomReal
from ldd.evaluation.baselines.stored import StoredSet
from ldd.evaluation.baselines.variants import Plain, SoftLabels
from ldd.evaluation.results.rows import DISTILLED, DISTILLED_HARD, budget_name
from ldd.labels.crops import CropLabels
from ldd.runtime.seeding import derive_seed
from ldd.students.protocol import Protocol
from ldd.students.training_set import Sampler, draw_samples

INITIAL = "initial"
"""Name of the codes as they were before the first step."""


def all_sets(
    distilled: DistilledSet,
    initial: DistilledSet | None,
    beside: Sequence[Baseline],
    budgets: Sequence[int],
    protocol: Protocol,
    sampler: Sampler | None,
    seed: int,
    crops: CropLabels | None = None,
) -> list[Baseline]:
    """Every set that students learn from, the one in question first.

    Args:
        distilled: the set in question.
        initial: its codes before their first step, or None.
        beside: the baselines.
        budgets: nested budgets, as in `nested_sets`.
        protocol: says which draws and which sets for its scores are needed.
        sampler: draws of the set's codes, where they have a spread.
        seed: of these draws.
        crops: labels of the set's crops in store, or None.

    Raises:
        UserError: two sets of one name, no sampler for codes with a spread, a budget beyond the set, labels of other
            crops than the set's under the protocol.
    """
    samples = _samples(distilled, protocol, sampler, seed)
    if crops is not None:
        crops.check(distilled, protocol)
    sets = [*_own_sets(distilled, initial, samples, protocol, crops), *beside]
    sets += needed_by_scores(protocol, distilled, sets)
    sets += nested_sets(budgets, distilled, sets, samples)
    _check_names(sets)
    if protocol.labels == "teacher" and (charged := [part.name for part in sets if part.by_bytes]):
        raise UserError(
            f"baselines: {', '.join(charged)} count the bytes of the set's own labels, and protocol {protocol.id} "
            "charges those of every crop, which as many images have as many of; leave them out"
        )
    return sets


def _samples(
    distilled: DistilledSet, protocol: Protocol, sampler: Sampler | None, seed: int
) -> torch.Tensor | None:
    """The draws that the protocol asks of codes with a spread."""
    if not (distilled.is_distribution and protocol.samples):
        return None
    if sampler is None:
        raise UserError(
            f"the set's codes have a spread, of which protocol {protocol.id} needs draws (samples: "
            f"{protocol.samples}), but nothing draws them; give a sampler, or a protocol with samples: 0"
        )
    n, size = len(distilled.images), distilled.image_size
    epochs, _ = protocol.budget(distilled.counts)
    return draw_samples(sampler, protocol, n, size, derive_seed(seed, "samples"), epochs)


def _own_sets(
    distilled: DistilledSet,
    initial: DistilledSet | None,
    samples: torch.Tensor | None,
    protocol: Protocol,
    crops: CropLabels | None,
) -> list[Baseline]:
    """The set with the labels it has, with hard ones where those are soft, and as it was at first."""
    sets: list[Baseline] = [StoredSet(DISTILLED, distilled, samples=samples, crops=crops)]
    if distilled.soft_labels is not None and protocol.labels == "own":
        sets.append(StoredSet(DISTILLED_HARD, distilled, soft=False, samples=samples))
    if initial is not None:
        sets.append(StoredSet(INITIAL, initial))
    return sets


def needed_by_scores(protocol: Protocol, distilled: DistilledSet, sets: Sequence[Baseline]) -> list[Baseline]:
    """The sets that label- and augmentation-robust scores compare with, as far as they are not there."""
    if protocol.scores == "none":
        return []
    there = {part.name: part for part in sets}
    random: Baseline = RandomReal() if distilled.soft_labels is None else SoftLabels(RandomReal())
    wanted = [random, FullReal(), Plain(there[DISTILLED]), Plain(random)]
    return [part for part in wanted if part.name not in there]


def nested_sets(
    budgets: Sequence[int],
    distilled: DistilledSet,
    beside: Sequence[Baseline],
    samples: torch.Tensor | None = None,
) -> list[Baseline]:
    """The first so many images of each class, and as many random real ones where those are among the sets beside.

    Args:
        budgets: images per class; that of the whole set is no set of its own.
        distilled: the set.
        beside: the other sets of the evaluation.
        samples: (P, N, 3, H, W) uint8, draws of all its codes, or None.

    Raises:
        UserError: a budget below 1 or beyond the set.
    """
    smaller = [budget for budget in sorted(set(budgets)) if distilled.images_per_class != budget]
    sets: list[Baseline] = []
    for budget in smaller:
        own = None if samples is None else samples[:, first_rows(distilled.labels, budget)]
        sets.append(StoredSet(budget_name(DISTILLED, budget), distilled.first(budget), samples=own))
    if any(isinstance(part, RandomReal) for part in beside):
        sets += [RandomReal(budget) for budget in smaller]
    return sets


def counts_by_set(distilled: DistilledSet, budgets: Sequence[int]) -> dict[str, Sequence[int]]:
    """Set -> images per class, which decide on its epochs; `distilled` for those that are not named."""
    nested = {budget_name(name, n): [n] for n in budgets for name in (DISTILLED, RandomReal.name)}
    return {DISTILLED: distilled.counts, **nested}


def _check_names(sets: Sequence[Baseline]) -> None:
    names = [part.name for part in sets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"baselines: {', '.join(twice)} is there twice; give every set a name of its own")
