"""Merge the distilled sets of disjoint sub-tasks into one."""

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from ldd.artefact.manifest import Manifest, Subtask
from ldd.artefact.set import DistilledSet
from ldd.disk.public import public_configuration
from ldd.errors import UserError
from ldd.federation.partition import check_blocks
from ldd.images import ClassInfo
from ldd.runtime.ledger import total


def merge(
    parts: Sequence[DistilledSet],
    classes: Sequence[ClassInfo],
    *,
    config: Mapping[str, Any] | None = None,
    test_split_fingerprint: str | None = None,
    others: Sequence[Sequence[str]] = (),
) -> DistilledSet:
    """Concatenate the sets of sub-tasks, classes in the order of the whole task (D3, arXiv 2403.00999, as released).

    Nothing is trained or averaged. Codes keep their values; each sub-task keeps its own trained decoder, whose tensors
    are named `<number of the sub-task>.<name>`, unless all have the same one. A single part that has the classes of the
    task is returned as it is.

    Args:
        parts: sets of disjoint classes, in the order of their sub-tasks.
        classes: the classes of the whole task, ordered by label.
        config: of the whole run, for the manifest; None keeps the first part's.
        test_split_fingerprint: of the whole task; None keeps the first part's.
        others: wnids of the classes that each sub-task learned besides and that were left out of its part, for the
            manifest.

    Raises:
        UserError: no part; classes that overlap, are missing or do not belong to the task; image sizes, normalisations,
            priors or kinds of codes that differ; soft labels over less than the whole task.
    """
    if not parts:
        raise UserError("no sub-task has a set to merge; run them first")
    blocks = [[info.wnid for info in part.classes] for part in parts]
    check_blocks(blocks, classes)
    _check_alike(parts)
    label_of = {info.wnid: info.label for info in classes}
    maps = [torch.tensor([label_of[wnid] for wnid in block]) for block in blocks]
    labels = torch.cat([mapped[part.labels] for mapped, part in zip(maps, parts, strict=True)])
    order = torch.argsort(labels, stable=True)

    def joined(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors))[order]

    first, by_class = parts[0], torch.cat(maps).argsort()

    def joined_codes(name: str) -> Tensor:
        tensors = [_given(part.codes)[name] for part in parts]
        return torch.cat(tensors)[by_class] if first.is_product else joined(tensors)

    return DistilledSet(
        images=joined([part.images for part in parts]),
        labels=labels[order],
        # Only a single part may have them: `_check_alike`. Its columns follow its own classes.
        soft_labels=None if first.soft_labels is None else first.soft_labels[order][:, maps[0].argsort()],
        weights=None if first.weights is None else joined([_given(part.weights) for part in parts]),
        codes=None if first.codes is None else {name: joined_codes(name) for name in first.codes},
        decoder=_decoders(parts),
        manifest=_manifest(parts, classes, config, test_split_fingerprint, others),
        label_top_k=first.label_top_k,
    )


def after_joint_steps(
    merged: DistilledSet, tuned: DistilledSet, uncharged: Sequence[str] = ()
) -> DistilledSet:
    """Return what a run over all classes has made of a merged set, with the facts and costs of both.

    Args:
        merged: of the sub-tasks; the run started from its codes.
        tuned: what the run has made.
        uncharged: stages of the run that are charged elsewhere.
    """
    before, after = merged.manifest, tuned.manifest
    steps = after.step or 0
    own = {stage: figures for stage, figures in after.ledger.stages.items() if stage not in uncharged}
    return tuned.with_facts(
        config=before.config,
        step=(before.step or 0) + steps,
        joint_steps=steps,
        subtasks=before.subtasks,
        seen_networks=sorted({*before.seen_networks, *after.seen_networks}),
        data_fingerprints=before.data_fingerprints,
    ).charged(total([before.ledger.stages, own]))


def _check_alike(parts: Sequence[DistilledSet]) -> None:
    first = parts[0]
    for number, part in enumerate(parts[1:], 1):
        for what, one, other in (
            ("images", f"{first.image_size} px", f"{part.image_size} px"),
            ("packing", first.packing, part.packing),
            ("normalisation", first.manifest["normalisation"], part.manifest["normalisation"]),
            ("prior", _prior(first), _prior(part)),
            ("codes", _kinds(first), _kinds(part)),
            ("decoder", _shapes(first.decoder), _shapes(part.decoder)),
            ("weights", first.weights is not None, part.weights is not None),
        ):
            if one != other:
                raise UserError(
                    f"sub-tasks 0 and {number} differ in {what}: {one} and {other}; distil both with one recipe"
                )
        if first.soft_labels is not None or part.soft_labels is not None:
            raise UserError(
                f"sub-tasks 0 and {number} have soft labels over their own classes only; merge sets with hard labels, "
                "and label the result (latentdd label)"
            )


def _prior(part: DistilledSet) -> dict[str, Any]:
    """Return the frozen weights, and how the recipe uses them where that is known."""
    config = part.manifest.get("config") or {}
    model = config.get("model") if isinstance(config, Mapping) else None
    used = model.get("prior") if isinstance(model, Mapping) else None
    return {"weights": part.manifest.get("prior"), "settings": public_configuration(used)}


def _kinds(part: DistilledSet) -> dict[str, Any]:
    return {name: (str(t.dtype), tuple(t.shape[1:])) for name, t in sorted((part.codes or {}).items())}


def _shapes(tensors: Mapping[str, Tensor] | None) -> dict[str, Any]:
    return {
        name: (str(tensor.dtype), tuple(tensor.shape)) for name, tensor in sorted((tensors or {}).items())
    }


def _decoders(parts: Sequence[DistilledSet]) -> dict[str, Tensor] | None:
    first = parts[0].decoder
    decoders = [_given(part.decoder) for part in parts] if first is not None else []
    if first is None or all(torch.equal(own[name], first[name]) for own in decoders for name in first):
        return first
    return {f"{number}.{name}": tensor for number, own in enumerate(decoders) for name, tensor in own.items()}


def _manifest(
    parts: Sequence[DistilledSet],
    classes: Sequence[ClassInfo],
    config: Mapping[str, Any] | None,
    test_split_fingerprint: str | None,
    others: Sequence[Sequence[str]],
) -> Manifest:
    manifests = [part.manifest for part in parts]
    changes: dict[str, Any] = {
        "classes": classes,
        "seen_networks": sorted({name for manifest in manifests for name in manifest.seen_networks}),
        "licences": {
            key: "; ".join(dict.fromkeys(manifest.licences.get(key, "unknown") for manifest in manifests))
            for key in manifests[0].licences
        },
    }
    if config is not None:
        changes["config"] = config
    if test_split_fingerprint is not None:
        changes["test_split_fingerprint"] = test_split_fingerprint
    if len(parts) > 1:
        changes["step"] = min(manifest.step or 0 for manifest in manifests)
        beside: list[tuple[str, ...] | None] = [tuple(wnids) for wnids in others]
        changes["subtasks"] = [
            Subtask(tuple(info.wnid for info in manifest.classes), manifest.seed, manifest.step, of_others)
            for manifest, of_others in zip(manifests, beside or [None] * len(parts), strict=True)
        ]
        sent = [manifest.sent for manifest in manifests if manifest.sent is not None]
        changes["sent"] = reduce(add, sent) if len(sent) == len(parts) else None
    stages = total([manifest.ledger.stages for manifest in manifests])
    return manifests[0].replaced(**changes).charged(stages)


def _given(value: Any) -> Any:  # noqa: ANN401 - whatever is optional
    assert value is not None, "checked by `_check_alike`"
    return value
