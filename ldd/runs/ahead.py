"""What a run would refuse after hours, refused before any image is decoded: images, experts, labels, its evaluation."""

from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from ldd.artefact.set import DistilledSet
from ldd.callbacks import CrossArchitecture, RecordExperts
from ldd.data import DistillationData
from ldd.distiller.module import Distiller
from ldd.evaluation import Labels
from ldd.evaluation.ahead import Listed, check_evaluation, planned_set, stand_in
from ldd.evaluation.comparison import report_in
from ldd.experts.trajectories import MissingExperts, find_experts


def check_run(
    model: Distiller,
    data: DistillationData,
    experts: RecordExperts,
    evaluation: CrossArchitecture | None,
    *,
    steps: bool = True,
    folder: Path | None = None,
    subtasks: int | None = None,
    here: bool = True,
) -> None:
    """Raise unless a run has what it will need, as far as the source's lists of images tell; nothing is decoded.

    Args:
        model: of all classes.
        data: likewise.
        experts: how missing ones are recorded.
        evaluation: of the set; None for a run without.
        steps: whether any are taken.
        folder: with results to which the evaluation adds; None for a new one.
        subtasks: number of sub-tasks that distil the set, each with experts of its own; None for one run.
        here: the evaluation is on this machine, whose memory must hold draws of the codes.

    Raises:
        UserError: a class with too few images, experts or labels that are missing, or what the evaluation refuses.
    """
    listed, labels = Listed(data), model.labels
    check_images(listed, model.images_per_class, model.objective.real_images() if steps else 0)
    if steps:
        model.objective.check_networks(data.spec)
    if experts.num_experts:
        needs = model.needs(steps=steps)
        experts.check(needs)
        if subtasks is None:
            experts.find(needs, data.spec, listed.core_set)
    elif steps and subtasks is None:
        for need in model.objective.experts():
            find_experts(need, data.spec, listed.core_set)
    if labels is not None:
        recorded = bool(experts.num_experts and labels.experts())
        with suppress(MissingExperts) if recorded else nullcontext():
            labels.check(listed)
    if evaluation is None:
        return
    if folder is not None:
        report_in(folder, evaluation.protocol, split=evaluation.split)
    planned = _planned(model, labels, subtasks or 1)
    request = evaluation.request(
        listed,
        initial=planned if evaluation.initial and subtasks is None else None,
        prior=model.prior.eval(),
        sampler=lambda _: planned.images,  # of which only the number counts
        draws_must_fit=here,
    )
    check_evaluation(planned, request, labels)


def check_images(listed: Listed, images_per_class: int, real_batch: int) -> None:
    """Raise unless every class has as many real images as a run needs.

    Args:
        listed: the data.
        images_per_class: of the set.
        real_batch: of the objective, which each step draws of a class.

    Raises:
        UserError: names a class with too few images.
    """
    for label in range(listed.spec.num_classes):
        listed.core_set.require(label, images_per_class, "images_per_class")
        listed.core_set.require(label, real_batch, "objective.real_batch")


def _planned(model: Distiller, labels: Labels | None, subtasks: int) -> DistilledSet:
    """Return a set of the form that the model makes; each of the `subtasks` has its own decoder, if it trains one."""
    trained = model.prior.trained()
    decoder = {f"{k}.{name}": value for k in range(subtasks) for name, value in trained.items()}
    spec, of_codes = model.data_spec, model.codes.labels.cpu()
    planned = planned_set(spec, of_codes, model.codes.tensors(), decoder or None)
    if labels is None:
        return planned
    labeller = stand_in(labels, spec)
    alike = labeller(planned.images[:1]).expand(len(of_codes), -1)
    return replace(planned, soft_labels=alike, label_top_k=labeller.top_k)
