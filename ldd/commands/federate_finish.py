"""The end of a federation: sub-tasks' sets merged, labelled over all classes, saved and evaluated."""

from dataclasses import replace

import rich

from ldd.commands.evaluate import find_prior, stored_sampler
from ldd.commands.federate_plan import Plan
from ldd.distilled import DistilledSet
from ldd.evaluation import Labeller, Report, dimensions, evaluate as run_evaluation
from ldd.evaluation.naming import EQUAL
from ldd.evaluation.records import FOLDER
from ldd.evaluation.report import JSON_NAME
from ldd.evaluation.running import pick_device
from ldd.federation import merge


def finish(plan: Plan) -> None:
    """Merge what the sub-tasks left, label it where the recipe says so, save it, evaluate it, print the tables.

    A set that was evaluated already is left as it is.

    Raises:
        UserError: sets that do not belong together, or experts that are missing.
    """
    recipe, out = plan.recipe, plan.folder / "distilled"
    parts = [DistilledSet.load(plan.subtask(number)) for number in range(len(plan.partition.blocks))]
    data = recipe.data
    merged = merge(parts, data.classes, config=recipe.resolved, test_split_fingerprint=data.spec.fingerprint)
    labeller: Labeller | None = None
    if recipe.model.labels is not None:
        data.setup()
        labeller = recipe.model.labels.choose(data, merged.counts, plan.seed, pick_device())
        merged = labeller.label(merged)
    before = DistilledSet.load(out).manifest["sha256"] if (out / "manifest.json").is_file() else None
    merged.save(out)
    saved = DistilledSet.load(out)
    print(
        f"merged {len(parts)} sub-tasks into {out}: {len(saved.images)} images of {saved.num_classes} classes"
    )
    report = Report.read(plan.folder) if before == saved.manifest["sha256"] else None
    if report is not None and (plan.folder / JSON_NAME).is_file():
        print(f"evaluated already: {plan.folder / JSON_NAME}")
        return
    if recipe.evaluates:
        _evaluate(plan, saved, labeller)


def _evaluate(plan: Plan, merged: DistilledSet, labeller: Labeller | None) -> None:
    evaluation = plan.recipe.evaluation
    names = EQUAL if evaluation.baselines is None else ",".join(part.name for part in evaluation.baselines)
    report = run_evaluation(
        merged,
        evaluation.networks,
        plan.recipe.data,
        evaluation.protocol,
        evaluation.repeats,
        evaluation.seed,
        baselines=evaluation.baselines,
        sampler=stored_sampler(merged, evaluation.protocol, pick_device()),
        labeller=labeller,
        prior=find_prior(merged, names),
        records=plan.folder / FOLDER,
        num_workers=evaluation.num_workers,
    )
    report = replace(report, facts={**report.facts, "subtasks": len(plan.partition.blocks)})
    report.write(plan.folder)
    rich.print(report.table(), dimensions.table(report))
