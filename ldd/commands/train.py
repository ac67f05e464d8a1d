"""`latentdd train`: use a distilled set. One network, trained on it and saved."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ldd import __version__
from ldd.artefact.identity import refuse_other_test_split
from ldd.artefact.set import DistilledSet
from ldd.data import DistillationData
from ldd.disk.files import check_writable, write_tensors
from ldd.distiller.synthesis import stored_sampler
from ldd.errors import UserError
from ldd.evaluation import Labels, Protocol, StoredSet
from ldd.evaluation.ahead import check_labels
from ldd.evaluation.courses import teacher_of
from ldd.images import DataSpec
from ldd.labels.crops import CropLabels
from ldd.networks import NetworkFactory, accuracy
from ldd.runs.ending import Ending, ending_of_set
from ldd.runs.verb import run_function
from ldd.runtime.classes import dotted_name
from ldd.runtime.devices import pick_device
from ldd.runtime.progress import progress
from ldd.students.training import check_networks, fresh_network, train_student
from ldd.students.training_set import draws_for


def train(
    path: str,
    network: NetworkFactory,
    out: str,
    protocol: str = "ld3m",
    seed: int = 0,
    data: DistillationData | None = None,
    labels: Labels | None = None,
    crop_labels: str | None = None,
) -> Ending:
    """Train one network on a distilled set and save its weights with what is needed to rebuild and to use it.

    It learns from the soft labels where the set has them, and from new draws where its codes have a spread.

    Args:
        path: folder of a distilled set, or of a run.
        network: class of the network, with arguments of its own.
        out: file to write, ending in .safetensors.
        protocol: name of a shipped protocol, or path of a protocol file.
        seed: of initial weights, order, augmentation and dropout.
        data: real images; where given, the network is tested on their test split.
        labels: the teacher of a protocol that has one; needs data.
        crop_labels: in its place a file of `latentdd label-crops` for this set and protocol; then the network sees the
            crops and the order of that file, and `seed` is of its initial weights alone.

    Raises:
        UserError: a set, protocol, data or file that cannot be used.
    """
    file = _checked(out)
    distilled, recipe, device = DistilledSet.load(path), Protocol.load(protocol), pick_device()
    _check_labels(labels, crop_labels, recipe, data)
    check_networks({"network": network}, _spec_of(distilled))
    draws = draws_for(recipe, distilled, stored_sampler(distilled, recipe, device), seed)
    labeller, crops, spec = None, None, _spec_of(distilled)
    if crop_labels is not None:
        crops = CropLabels.load(crop_labels)
        crops.check(distilled, recipe)
    elif labels is None:
        teacher_of(recipe, None)  # or refuses a protocol that has one
    if data is not None:
        refuse_other_test_split(distilled, data.spec, data.fingerprints_of("test"))
        check_labels(distilled, data, labels)
        data.setup()
    if labels is not None and data is not None:
        labeller = labels.choose_for(distilled, data, recipe, seed)
    epochs, batch_size = recipe.budget(distilled.counts)
    with progress("training", epochs, unit="epochs") as counter:
        trained = train_student(
            fresh_network(network, spec, seed, "train", 0).to(device),
            StoredSet("distilled", distilled, samples=draws, crops=crops).training.to(device),
            spec,
            recipe,
            epochs=epochs,
            batch_size=batch_size,
            teacher=teacher_of(recipe, labeller) if crops is None else None,
            seed=seed,
            on_epoch=lambda epoch, loss: counter.add(1, lambda: f"loss {float(loss):.3f}"),
        )
    write_tensors(file, trained.state_dict(), _metadata(network, trained, spec, recipe, seed))
    return _told(trained, spec, data, ending_of_set(path, "--protocol", protocol)._replace(made=(file,)))


def _checked(out: str) -> Path:
    """Return the file, which can be written and has the right ending."""
    file = Path(out)
    if file.suffix != ".safetensors":
        raise UserError(f"out ({out}) must name a file that ends in .safetensors")
    check_writable(file.parent)
    return file


def _told(network: nn.Module, spec: DataSpec, data: DistillationData | None, ending: Ending) -> Ending:
    """Return the ending, once it is said what was trained."""
    print(f"{type(network).__name__}, {sum(p.numel() for p in network.parameters()):,} weights")
    if data is None:
        print("its accuracy is printed where real images are given: --data DATA.yaml")
        return ending
    device = next(network.parameters()).device
    images, truth = data.test_images.images.to(device), data.test_images.labels.to(device)
    score = accuracy(network, images, truth, normalise=spec.as_input)
    print(f"accuracy on {len(truth)} test images: {100 * score:.1f} %")
    return ending


def _check_labels(
    labels: Labels | None, crop_labels: str | None, protocol: Protocol, data: DistillationData | None
) -> None:
    """Raise for labels that would not be used, or that cannot be chosen without data."""
    if crop_labels is not None and labels is not None:
        raise UserError(f"crop_labels ({crop_labels}) are a teacher's already; leave --labels out")
    if labels is not None and not protocol.has_teacher:
        raise UserError(
            f"--labels are the teacher of a protocol that has one, and {protocol.id} takes the labels of the set; give "
            "the set others with `latentdd label`, or leave --labels out"
        )
    if labels is not None and data is None:
        raise UserError("--labels needs --data: the images that the labels' experts were recorded on")


def _spec_of(distilled: DistilledSet) -> DataSpec:
    normalisation = distilled.manifest["normalisation"]
    return DataSpec(
        classes=distilled.classes,
        image_size=distilled.image_size,
        mean=tuple(normalisation["mean"]),
        std=tuple(normalisation["std"]),
        fingerprint=distilled.manifest["test_split_fingerprint"] or "",
    )


def _metadata(
    network: NetworkFactory, trained: nn.Module, spec: DataSpec, protocol: Protocol, seed: int
) -> dict[str, str]:
    """Return what is needed to rebuild the network and to use it."""
    # What jsonargparse and protocols make of `class_path` with `init_args` is a partial; a bare class has none.
    arguments = dict(network.keywords) if isinstance(network, functools.partial) else {}
    return {
        "format": "pt",
        "latentdd": __version__,
        "class_path": dotted_name(type(trained)),
        "init_args": json.dumps(arguments),
        "num_classes": str(spec.num_classes),
        "image_size": str(spec.image_size),
        "classes": json.dumps([info.to_dict() for info in spec.classes]),
        "mean": json.dumps(spec.mean),
        "std": json.dumps(spec.std),
        "protocol": protocol.id,
        "protocol_hash": protocol.hash,
        "seed": str(seed),
    }


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    return run_function(train, verb, arguments, data=True)
