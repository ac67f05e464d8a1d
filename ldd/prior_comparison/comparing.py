"""Compare priors on the user's data, one after the other, and keep each result at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ldd.artefact.identity import identify
from ldd.artefact.samples import sampled_set
from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData
from ldd.disk.files import write_json
from ldd.disk.records import read_record, to_json
from ldd.errors import UserError
from ldd.evaluation import RandomReal, Report
from ldd.evaluation.ahead import check_evaluation, planned_set
from ldd.evaluation.baselines.base import Setting
from ldd.evaluation.comparison import compare
from ldd.evaluation.features import trained_features
from ldd.evaluation.request import Request
from ldd.evaluation.results.rows import DISTILLED, REFERENCE, Score, budget_name
from ldd.images import Labelled
from ldd.prior_comparison.candidates import Candidate, shown_path
from ldd.prior_comparison.figures import Figures, Likeness, RealFeatures, sampling_cost, step_cost
from ldd.priors.sampling import PriorSampler
from ldd.runtime.ranks import rank_zero_info

ASKED, PRIORS, STUDENTS, REAL = "asked.json", "priors", "students", "random_real.json"
"""Names in the folder of a comparison: what was asked for, folders of priors, tested students, and real images."""

SAMPLES, FIGURES = "samples", "figures.json"
"""Names in a prior's folder: its set of samples, and its figures."""


@dataclass(frozen=True)
class Compared:
    """Results of one prior.

    Attributes:
        typed: the prior, without what only this machine knows.
        licence: terms of its weights.
        test_images: whether it has seen them, and what says so.
        figures: of samples and steps.
        accuracies: images per class -> network -> score of students of its samples.
        means: images per class -> mean over networks.
    """

    typed: str
    licence: str
    test_images: tuple[str, str]
    figures: Figures
    accuracies: Mapping[int, Mapping[str, Score]]
    means: Mapping[int, Score]


@dataclass(frozen=True)
class Comparison:
    """Results of all priors, and of as many random real images.

    Attributes:
        priors: by name.
        real: likeness of random real images, as many as the largest set of samples.
        real_accuracies: as of `Compared`.
        real_means: likewise.
        facts: of the comparison as a whole.
        rows: pictures of a sample of each class, by name of the row, (K, 3, H, H) uint8; the real ones last.
    """

    priors: Mapping[str, Compared]
    real: Likeness
    real_accuracies: Mapping[int, Mapping[str, Score]]
    real_means: Mapping[int, Score]
    facts: Mapping[str, Any]
    rows: Mapping[str, torch.Tensor]

    @property
    def budgets(self) -> list[int]:
        """Numbers of images per class."""
        return list(self.facts["images_per_class"])

    @property
    def unit(self) -> str:
        """Seconds in tables: on a CPU those of the process's cores, since other programs do not change them."""
        return "CPU s" if self.facts["device"] == "cpu" else "s"

    def seconds(self, name: str) -> tuple[float, float]:
        """Return what a sample of a prior, and a step through it, take in that unit."""
        figures = self.priors[name].figures
        costs = figures.sampling, figures.step
        one, other = (cost.cpu_seconds if self.unit == "CPU s" else cost.seconds for cost in costs)
        return one, other

    def best(self) -> str:
        """Return the name of the prior whose samples teach most, at the largest number of images."""
        return max(self.priors, key=lambda name: self.priors[name].means[self.budgets[-1]].mean)


@dataclass(frozen=True)
class _Asked:
    """What a folder of a comparison was asked for: facts that all priors share, and each prior by name."""

    facts: Mapping[str, Any]
    priors: Mapping[str, Any]


@dataclass(frozen=True)
class _Known:
    """What is known of a prior before any work."""

    sampler: PriorSampler
    test_images: tuple[str, str]
    licence: str
    entry: Mapping[str, Any]


def compare_priors(
    candidates: Sequence[Candidate],
    data: DistillationData,
    budgets: Sequence[int],
    request: Request,
    out: Path,
) -> Comparison:
    """Draw samples of each prior, train students on them and on random real images, and measure both.

    Samples and figures of a prior, and each student, are kept in `out` at once; what is there already is taken.

    Args:
        candidates: the priors.
        data: real images.
        budgets: images per class of the students' sets, ascending: the first so many samples of each class.
        request: how students are trained, and where they are kept; without baselines and budgets.
        out: folder of the results.

    Raises:
        UserError: before any work, a prior, a class, a size or numbers that cannot be used, or a folder with results
            of another request.
    """
    spec, most = data.spec, budgets[-1]
    request = replace(request, baselines=[RandomReal()], budgets=budgets[:-1])
    planned = planned_set(spec, torch.arange(spec.num_classes).repeat_interleave(most))
    check_evaluation(planned, request, None)
    known = {one.name: _known(one, data, most, request.seed) for one in candidates}
    facts = _facts(data, budgets, request)
    _keep_request(out, facts, {name: one.entry for name, one in known.items()})
    data.setup()
    work = _Work(data, request, out)
    compared, rows, report = dict[str, Compared](), dict[str, torch.Tensor](), None
    for one in candidates:
        about = known[one.name]
        samples, figures = work.measured(one, about.sampler)
        report = compare(samples, request)
        accuracies, means = _scores(report, DISTILLED, budgets)
        compared[one.name] = Compared(
            shown_path(one), about.licence, about.test_images, figures, accuracies, means
        )
        rows[one.name] = samples.images[::most].clone()  # not all of them
    assert report is not None
    real = RandomReal().set_for(0, Setting(data, planned.counts, request.seed))
    rows[REFERENCE] = real.images[::most]
    facts["test_images"] = len(request.test_split().labels)
    return Comparison(
        compared, work.likeness_of_real(real), *_scores(report, REFERENCE, budgets), facts, rows
    )


def _known(candidate: Candidate, data: DistillationData, per_class: int, seed: int) -> _Known:
    prior, sampler = candidate.checked(data.spec, per_class, seed)
    entry = {
        "settings": {name: to_json(value) for name, value in candidate.settings.items()},
        "sha256": identify(prior)["sha256"],
    }
    return _Known(sampler, candidate.test_images(data), prior.licence, entry)


def _scores(
    report: Report, name: str, budgets: Sequence[int]
) -> tuple[dict[int, dict[str, Score]], dict[int, Score]]:
    """Return accuracies and their means over networks by images per class, of a set and of its first images."""
    names = {budget: name if budget == budgets[-1] else budget_name(name, budget) for budget in budgets}
    scores, means = report.scores(), report.mean_unseen()
    return {b: scores[one] for b, one in names.items()}, {b: means[one] for b, one in names.items()}


def _facts(data: DistillationData, budgets: Sequence[int], request: Request) -> dict[str, Any]:
    """Return what all priors of a comparison share, as plain values."""
    return {
        "protocol": {"id": request.protocol.id, "hash": request.protocol.hash},
        "networks": list(request.factories),
        "images_per_class": list(budgets),
        "repeats": request.repeats,
        "seed": request.seed,
        "image_size": data.spec.image_size,
        "data": dict(data.fingerprints),
        "device": str(request.device),
    }


def _keep_request(out: Path, facts: Mapping[str, Any], priors: Mapping[str, Any]) -> None:
    """Write what is asked for; raise if results of another request are there, or of another prior of one name."""
    earlier: Mapping[str, Any] = {}
    if (out / ASKED).is_file():
        cure = f"give --out another folder than {out}, or delete it"
        found = read_record(out / ASKED, _Asked, cure)
        before, earlier = found.facts, found.priors
        if changed := [name for name, value in facts.items() if before.get(name) != value]:
            text = "; ".join(f"{name} then {before.get(name)}, now {facts[name]}" for name in changed)
            raise UserError(f"out ({out}) holds a comparison that was asked for otherwise ({text}); {cure}")
        for name, entry in priors.items():
            if earlier.get(name, entry) != entry:
                raise UserError(
                    f"PRIOR {name} has other weights or settings than the one whose results are in {out}; name it "
                    f"otherwise (NAME=PRIOR), or {cure}"
                )
    write_json(out / ASKED, to_json(_Asked(facts, {**earlier, **priors})))


class _Work:
    """Draws and measures what is not there yet."""

    def __init__(self, data: DistillationData, request: Request, out: Path) -> None:
        self._data = data
        self._request = request
        self._out = out

    @cached_property
    def _features(self) -> RealFeatures:
        device, seed, spec = self._request.device, self._request.seed, self._data.spec
        return RealFeatures(self._data, trained_features(self._data.train_images, spec, seed, device))

    def measured(self, candidate: Candidate, sampler: PriorSampler) -> tuple[DistilledSet, Figures]:
        """Return the samples of a prior and its figures."""
        folder, spec = self._out / PRIORS / candidate.name, self._data.spec
        drawn, kept = folder / SAMPLES, folder / FIGURES
        if drawn.is_dir() and kept.is_file():
            return DistilledSet.load(drawn), read_record(kept, Figures, "delete it")
        rank_zero_info(f"{candidate.name}: {sampler.num_steps} steps at guidance {sampler.guidance_scale:g}")
        prior = candidate.load().to(self._request.device)
        if not drawn.is_dir():
            sampled_set(prior, spec, sampler, shown_path(candidate)).save(drawn)
        samples = DistilledSet.load(drawn)
        figures = Figures(
            sampling_cost(prior, sampler, spec.classes[0]),
            self._features.likeness(Labelled(samples.images, samples.labels)),
            step_cost(candidate.for_steps(prior, spec), self._data, self._request.seed, self._request.device),
        )
        write_json(kept, to_json(figures))
        return samples, figures

    def likeness_of_real(self, real: Labelled) -> Likeness:
        """Return the likeness of real images."""
        kept = self._out / REAL
        if not kept.is_file():
            write_json(kept, to_json(self._features.likeness(real, real=True)))
        return read_record(kept, Likeness, "delete it")
