"""The end of a federation: the sets of the sub-tasks are merged, labelled over all classes, saved and evaluated."""

from dataclasses import replace
from typing import Any

import rich

from ldd.artefact import manifest as manifests
from ldd.artefact.identity import identity
from ldd.artefact.set import DistilledSet
from ldd.disk.files import read_json
from ldd.distiller.synthesis import StoredSampler
from ldd.evaluation import Labeller, Report
from ldd.evaluation.comparison import compare, report_in
from ldd.evaluation.records import FOLDER
from ldd.evaluation.results.report import JSON_NAME
from ldd.experts.recording import cost_of_experts
from ldd.federation.folder import Federation
from ldd.runs.ending import Ending, ending_of_run
from ldd.runtime.devices import pick_device
from ldd.runtime.ledger import EVALUATE, EXPERTS, PRUNE, Figures, total

_SETTINGS = "settings"
"""Key of evaluation.json: the evaluation as the recipe has it."""


def finish(federation: Federation) -> Ending:
    """Merge the sets of the sub-tasks; label, save and, unless done already, evaluate the result; print the tables."""
    recipe, out = federation.recipe, federation.folder / "distilled"
    federation.check_images()
    merged, number = federation.merged(), len(federation.partition.blocks)
    labeller: Labeller | None = None
    if recipe.model.labels is not None:
        merged, labeller = _labelled(federation, merged)
    merged.save(out)
    saved = DistilledSet.load(out)
    together = f", {steps} steps together" if (steps := saved.manifest.joint_steps) else ""
    print(f"merged {number} sub-tasks: {len(saved.images)} images of {saved.num_classes} classes{together}")
    report = earlier = _earlier(federation, saved)
    if recipe.evaluates and (earlier is None or _is_due(federation)):
        report = _evaluate(federation, saved, labeller, earlier)
        report = report if earlier is None else report.after(earlier)
        facts = {_SETTINGS: _settings(federation), "subtasks": number}
        report = replace(report, facts={**report.facts, **facts})
        report.write(federation.folder)
        rich.print(*report.tables())
    elif recipe.evaluates:
        print(f"evaluated already: {federation.folder / JSON_NAME}")
    if report is not None:
        manifests.charge(out, EVALUATE, report.spent())
    return ending_of_run(federation.folder)


def _labelled(federation: Federation, merged: DistilledSet) -> tuple[DistilledSet, Labeller]:
    """Return the set with soft labels and all costs, experts of the whole task included, and its labeller."""
    recipe = federation.recipe
    data, labels = recipe.data, recipe.model.labels
    assert labels is not None
    data.setup()
    labelled, labeller = labels.label(merged, data, federation.seed)
    before, needs = dict(labelled.manifest.ledger.stages), labels.experts()
    if len(federation.partition.blocks) == 1:
        # Its sub-task is the whole task, and may have read the same experts.
        before.pop(EXPERTS, None)
        needs = tuple(recipe.model.needs(steps=recipe.config.trainer.max_steps != 0))
    elif federation.joint_steps:  # likewise, and `Federation.merged` has left them out
        needs = tuple(recipe.model.needs())
    of_whole: dict[str, Figures] = {}
    if experts := cost_of_experts(needs, data):
        of_whole[EXPERTS] = experts
    if data.pruning_cost is not None:
        of_whole[PRUNE] = data.pruning_cost
    return labelled.charged(total([before, of_whole, federation.cost_of_recording()])), labeller


def _earlier(federation: Federation, merged: DistilledSet) -> Report | None:
    """Return the earlier evaluation if it was of this set; raise where it was by another protocol of the same id."""
    evaluation, data = federation.recipe.evaluation, federation.recipe.data
    earlier = report_in(federation.folder, evaluation.protocol, data, evaluation.split)
    if earlier is None:
        return None
    step = str(merged.manifest.step or 0)
    return earlier if earlier.facts.get("sets", {}).get(step) == identity(merged) else None


def _is_due(federation: Federation) -> bool:
    """Return whether the recipe asks for another evaluation than the latest one."""
    path = federation.folder / JSON_NAME
    return not path.is_file() or read_json(path).get(_SETTINGS) != _settings(federation)


def _settings(federation: Federation) -> dict[str, Any]:
    """Return what results depend on apart from the set: the section `evaluation`, the protocol, the test images."""
    recipe = federation.recipe
    without = ("protocol", "num_workers", "initial")
    of_recipe = {k: v for k, v in recipe.resolved["evaluation"].items() if k not in without}
    protocol = recipe.evaluation.protocol
    return {
        **of_recipe,
        "protocol": {"id": protocol.id, "hash": protocol.hash},
        "test_split_fingerprint": recipe.data.spec.fingerprint,
    }


def _evaluate(
    federation: Federation, merged: DistilledSet, labeller: Labeller | None, earlier: Report | None
) -> Report:
    evaluation, device = federation.recipe.evaluation, pick_device()
    prior = federation.recipe.model.prior.to(device).eval()
    drawn = evaluation.protocol.draws_from(merged)
    request = evaluation.request(
        federation.recipe.data,
        sampler=StoredSampler(merged, prior, device) if drawn else None,
        labeller=labeller,
        prior=prior,
        records=federation.folder / FOLDER,
        device=device,
    )
    return compare(merged, request, earlier=earlier)
