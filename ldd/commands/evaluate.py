"""`latentdd evaluate`: train networks on a distilled set and on the sets it is compared with."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import rich

from ldd.artefact.identity import identity, refuse_other_test_split
from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData
from ldd.disk.locks import writing_in
from ldd.distiller.synthesis import check_prior, prior_of, stored_sampler
from ldd.errors import UserError
from ldd.evaluation import Baseline, Labels, Protocol, Report, equal_baselines
from ldd.evaluation.ahead import check_evaluation, check_labels
from ldd.evaluation.baselines.chosen import PriorSamples
from ldd.evaluation.baselines.equal import EQUAL, baselines_by_name
from ldd.evaluation.comparison import compare, report_in
from ldd.evaluation.records import FOLDER
from ldd.evaluation.request import Request, Tested
from ldd.evaluation.results.report import CSV_NAME, JSON_NAME
from ldd.evaluation.results.rows import INITIAL
from ldd.labels.crops import CropLabels
from ldd.networks import NetworkFactory
from ldd.priors import Prior
from ldd.runs.ending import Ending
from ldd.runs.verb import run_function
from ldd.runtime.devices import pick_device
from ldd.runtime.precision import MatmulPrecision, multiplying
from ldd.students.workers import NumWorkers


def evaluate(
    path: str,
    data: DistillationData,
    out: str,
    networks: dict[str, NetworkFactory] | None = None,
    protocol: str = "ld3m",
    repeats: int = 5,
    seed: int = 0,
    baselines: Sequence[Baseline] | str | None = None,
    budgets: list[int] | None = None,
    labels: Labels | None = None,
    crop_labels: str | None = None,
    num_workers: NumWorkers = "auto",
    other_data: bool = False,
    matmul_precision: MatmulPrecision = "auto",
    split: Tested = "test",
) -> Ending:
    """Train networks on a distilled set and on others, test them, and write and print the comparison.

    Args:
        path: folder of a distilled set, or of a run.
        data: real images: the test split, and what baselines draw from.
        out: folder for evaluation.csv and evaluation.json; results that are there are kept, and may not be of another
            set of the same step, or rest on other soft labels. Each tested network is kept in `evaluated`: a command
            that was killed goes on.
        networks: networks by name; null takes the protocol's.
        protocol: name of a shipped protocol, or path of a protocol file.
        repeats: networks of each kind for each set.
        seed: of everything random.
        baselines: names, separated by commas: random_real, nearest_real (nearest to centroids), easy_real (of least
            loss), prior_samples (plain samples), each followed or not by _bytes (as many as the set's bytes pay for),
            _soft (one soft label each) and _steps (trained for as many steps); full_real and full_real_steps; equal
            for all of these that can be had; or dotted names of classes; none for none; or a list of classes as `fit
            --evaluation.baselines` takes it. Null is equal, and evaluation.json says why others were left out. The
            codes before the first step join in where their folder `initial` lies next to the set.
        budgets: nested budgets, such as [1,5]: the first image, and the first 5, of each class are sets too, compared
            with as many random real ones.
        labels: what labelled the set (as model.labels of its run), for soft labels and protocols with a teacher.
        crop_labels: file of `latentdd label-crops` for the set and a protocol with a teacher: its students learn from
            these labels; other sets, which would need the teacher, stay away without `labels`.
        num_workers: worker processes on a CPU ("auto": one per core); the accuracies do not depend on it.
        other_data: the test split is another than the set was made beside, on purpose.
        matmul_precision: of products of float32 matrices, as model.matmul_precision of a run has it.
        split: what networks are tested on: test, as the protocol takes it, or all of selection, to choose settings.
    """
    distilled, recipe = DistilledSet.load(path), Protocol.load(protocol)
    if not other_data:
        refuse_other_test_split(distilled, data.spec, data.fingerprints_of("test"))
    names, given = _named(EQUAL if baselines is None else baselines)  # a wrong name shows before any work
    with writing_in(out), multiplying(matmul_precision, pick_device()):
        earlier = _earlier(out, recipe, data, distilled, split)
        request = Request(data, recipe, networks, repeats, seed, num_workers=num_workers, split=split)
        request = replace(request, budgets=budgets or (), records=Path(out) / FOLDER, device=pick_device())
        request = _with_parts(request, distilled, names, labels, crop_labels)
        _check(request, distilled, names, given, labels)
        request = _with_labels(request, distilled, labels)
        report = compare(distilled, _with_sets(request, distilled, names, given), earlier=earlier)
        (report if earlier is None else report.after(earlier)).write(out)
    return _shown(report, path, Path(out))


def _shown(report: Report, path: str, out: Path) -> Ending:
    rich.print(*report.tables())
    return Ending((out / CSV_NAME, out / JSON_NAME), ("report", path, "--out", out / "report.html"))


def _named(baselines: Sequence[Baseline] | str) -> tuple[str, tuple[Baseline, ...] | None]:
    """Return names of baselines, and the baselines themselves where they were not given by name."""
    if isinstance(baselines, str):
        baselines_by_name(baselines)
        return baselines, None
    return ",".join(baseline.name for baseline in baselines), tuple(baselines)


def _earlier(
    out: str, recipe: Protocol, data: DistillationData, distilled: DistilledSet, split: Tested
) -> Report | None:
    """Return the report that is added to, if it is of this set and of these images."""
    earlier = report_in(out, recipe, data, split)
    if earlier is not None:
        earlier.check_set(distilled.manifest.step or 0, identity(distilled))
    return earlier


def _with_parts(
    request: Request, distilled: DistilledSet, names: str, labels: Labels | None, crop_labels: str | None
) -> Request:
    """Return the request with labels of crops, first codes, sampler and prior of the set; labels can be had."""
    crops = None if crop_labels is None else CropLabels.load(crop_labels)
    check_labels(distilled, request.data, labels)
    return replace(
        request,
        crops=crops,
        initial=None if crops is not None and labels is None else _initial_beside(distilled.folder),
        sampler=stored_sampler(distilled, request.protocol, request.device),
        prior=_find_prior(distilled, names),
    )


def _check(
    request: Request,
    distilled: DistilledSet,
    names: str,
    given: tuple[Baseline, ...] | None,
    labels: Labels | None,
) -> None:
    """Refuse what could only fail later; of the baselines the named ones, whatever `equal` will stand for."""
    named = baselines_by_name(names) if given is None else given
    check_evaluation(distilled, replace(request, baselines=named), labels)


def _with_labels(request: Request, distilled: DistilledSet, labels: Labels | None) -> Request:
    """Return the request with the labeller that is named, and its data set up."""
    request.data.setup()
    if labels is None:
        return request
    of_set = request.data, request.protocol, request.seed, request.num_workers
    labeller = labels.choose_for(distilled, *of_set)
    if request.crops is not None:
        labeller.check_same(request.crops.teacher, "--crop_labels have", but=("temperature",))
    return replace(request, labeller=labeller)


def _with_sets(
    request: Request, distilled: DistilledSet, names: str, given: tuple[Baseline, ...] | None
) -> Request:
    """Return the request with the baselines of these names; its data are set up."""
    if given is not None:
        return replace(request, baselines=given)
    wanted = {name.strip() for name in names.split(",")}
    if wanted == {EQUAL}:
        return request
    equal: tuple[Baseline, ...] = ()
    if EQUAL in wanted:
        equal, _ = equal_baselines(distilled, request.setting(distilled), request.protocol)
    return replace(request, baselines=baselines_by_name(names, equal))


def _find_prior(distilled: DistilledSet, names: str) -> Prior | None:
    """Return the prior that the set's manifest names, on the device, where samples of it may be wanted.

    Where they are wanted as one of all baselines, one line says why there is none.

    Raises:
        UserError: samples are wanted by name, and there is no such prior.
    """
    wanted = [name.strip() for name in names.split(",")]
    needed = any(name.startswith(PriorSamples.name) for name in wanted)
    if not needed and EQUAL not in wanted:
        return None
    try:
        prior = prior_of(distilled)
        check_prior(distilled, prior)
    except UserError as error:
        if needed:
            raise
        print(f"{PriorSamples.name} is left out: {error}")
        return None
    return prior.to(pick_device())


def _initial_beside(folder: Path | None) -> DistilledSet | None:
    """Return the codes before the first step, which lie next to the folder of the set, in its run."""
    if folder is None:
        return None
    for run in (folder.parent, folder.resolve().parent):
        if (run / INITIAL / "manifest.json").is_file() and (run / INITIAL).resolve() != folder.resolve():
            return DistilledSet.load(run / INITIAL)
    return None


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    return run_function(evaluate, verb, arguments, data=True)
