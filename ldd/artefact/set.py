"""The artefact: a distilled set in memory, and the folder that holds it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from PIL import Image
from torch import Tensor

from ldd.artefact import checks as contents, manifest as manifests, soft_labels as soft
from ldd.artefact.dataset import DistilledDataset, InputTransform, Transform
from ldd.artefact.location import IMAGES, OPTIONAL, PREVIEW
from ldd.artefact.manifest import Facts, Manifest
from ldd.artefact.packing import check_packing, unpack
from ldd.artefact.picture import as_png, data_address, draw_grid
from ldd.artefact.size import Amount, Storage, span
from ldd.codes import PARTS
from ldd.disk.files import atomic_folder, holds_files, read_tensors, sha256, write_tensors
from ldd.disk.stores import placed
from ldd.errors import UserError
from ldd.images import ClassInfo, normalised
from ldd.runtime.ledger import Stages


@dataclass(eq=False, repr=False)
class DistilledSet:
    """A few synthetic images that stand for a data set, with all that is needed to use and trace them.

    Made by `from_images` or `load`; both check every value. By convention the images are class-major.

    Attributes:
        images: (N, 3, H, H) uint8 RGB.
        labels: (N,) int64 in 0..K-1; every class has an image.
        manifest: the facts of `manifest.json`, its classes among them; hashes and bytes are filled in when saved.
        soft_labels: (N, K) probabilities, or None.
        weights: (N,) how much each image counts, not negative, or None.
        codes: what the images were decoded from, by name, or None.
        decoder: weights of a decoder that was trained with the codes, by name, or None.
        label_top_k: how many probabilities of each soft label are stored; None stores all. They must be such as
            `ldd.artefact.soft_labels.quantise` makes.
        folder: from which it was loaded, or None.

    Raises:
        UserError: a tensor of the wrong kind, shape or range; the message names it.
    """

    images: Tensor
    labels: Tensor
    manifest: Manifest
    soft_labels: Tensor | None = None
    weights: Tensor | None = None
    codes: dict[str, Tensor] | None = None
    decoder: dict[str, Tensor] | None = None
    label_top_k: int | None = None
    folder: Path | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        contents.check_images(self.images)
        contents.check_labels(self.labels, self.images, self.classes)
        if self.packing > 1:
            check_packing(self.packing, self.image_size)
            if self.soft_labels is not None:
                raise UserError(
                    "soft_labels belong to images, and packed ones are grids of several; leave them out"
                )
        if self.soft_labels is not None:
            contents.check_soft_labels(self.soft_labels, len(self.images), self.num_classes, self.label_top_k)
            soft.stored(self.soft_labels, self.label_top_k)  # refuses what could not be stored
        if self.weights is not None:
            contents.check_weights(self.weights, len(self.images))
        contents.check_named("codes", self.codes)
        contents.check_named("decoder", self.decoder)

    @classmethod
    def from_images(
        cls,
        images: Tensor,
        labels: Tensor,
        classes: Sequence[ClassInfo],
        *,
        soft_labels: Tensor | None = None,
        label_top_k: int | None = None,
        weights: Tensor | None = None,
        codes: Mapping[str, Tensor] | None = None,
        decoder: Mapping[str, Tensor] | None = None,
        **facts: Unpack[Facts],
    ) -> Self:
        """Return a set of tensors, which are copied to the CPU.

        Args:
            images: (N, 3, H, H) uint8, or float in [-1, 1].
            labels: (N,) whole numbers in 0..K-1.
            classes: the K classes, ordered by label.
            soft_labels: (N, K) probabilities.
            label_top_k: how many of each row are stored, see the class.
            weights: (N,) how much each image counts.
            codes: what the images were decoded from.
            decoder: weights of a trained decoder.
            facts: for the manifest, see `ldd.artefact.manifest.Facts`: `mean` and `std` of the normalisation (0.5 if
                not given), `config`, `seed`, `test_split_fingerprint`, `licences`, `seen_networks`, `stages`, `prior`,
                `packing`.

        Raises:
            UserError: a value of the wrong kind, shape or range, floats outside [-1, 1], NaN.
        """
        return cls(
            images=contents.as_bytes(images),
            labels=contents.as_labels(labels),
            manifest=Manifest.of(classes, facts),
            soft_labels=None if soft_labels is None else soft_labels.detach().cpu(),
            weights=None if weights is None else weights.detach().cpu(),
            codes=contents.on_cpu(codes),
            decoder=contents.on_cpu(decoder),
            label_top_k=label_top_k,
        )

    def with_facts(self, **changes: Any) -> Self:  # noqa: ANN401 - values of any field of the manifest
        """Return the set with other values of some fields of its manifest.

        Raises:
            UserError: a value of the wrong kind; the message names it.
        """
        return replace(self, manifest=self.manifest.replaced(**changes))

    def charged(self, stages: Stages) -> Self:
        """Return the set with these costs of stages, see `ldd.runtime.ledger`, in the place of all that it has.

        Raises:
            UserError: a figure that is neither a number nor None.
        """
        return replace(self, manifest=self.manifest.charged(stages))

    def save(self, path: Path | str) -> Path:
        """Write the artefact's folder, or send it to a URL, as a whole or not at all; an older one there is replaced.

        Raises:
            UserError: the folder holds something else or cannot be written.
        """
        tables = {IMAGES: self._image_tensors(), **{OPTIONAL[k]: v for k, v in self._optional().items()}}
        with placed(path) as folder:
            if holds_files(folder) and not (folder / manifests.NAME).exists():
                raise UserError(f"{path} holds files that are not a distilled set; name a new folder")
            with atomic_folder(folder) as beside:
                for name, tensors in tables.items():
                    write_tensors(beside / name, tensors)
                draw_grid(self.images, self.labels, self.classes).save(beside / PREVIEW)
                hashes = {name: sha256(beside / name) for name in (*tables, PREVIEW)}
                self.manifest.saved(hashes, self.bytes).write(beside / manifests.NAME)
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Return the set in a folder after checking its version, hashes, class order and every value.

        Args:
            path: the artefact's folder, a run's folder with the artefact in `distilled/`, `embedded:digits-1` or
                `embedded:digits-10` (in the package), a URL in an object store, or `hf://user/name[@revision]` (a
                repository that `latentdd export --push-to-hub` has filled).

        Raises:
            UserError: missing, damaged, changed, of a newer format, or naming files outside its folder.
        """
        folder = manifests.find_artefact(path)
        manifest = Manifest.read(folder / manifests.NAME)
        files = manifests.verified_files(folder, manifest.sha256)
        if IMAGES not in files:
            raise UserError(f"{folder / manifests.NAME} lists no {IMAGES}; copy the artefact again")
        tensors = read_tensors(files[IMAGES])
        if not {"images", "labels"} <= set(tensors) <= {"images", "labels", "weights", *soft.NAMES}:
            raise UserError(
                f"{files[IMAGES]} must hold images, labels and at most soft labels and weights, got "
                f"{', '.join(sorted(tensors)) or 'nothing'}; export the artefact anew"
            )
        optional = {key: read_tensors(files[name]) for key, name in OPTIONAL.items() if name in files}
        try:
            loaded = cls(
                images=tensors["images"],
                labels=tensors["labels"],
                manifest=manifest,
                soft_labels=soft.restored(tensors, len(manifest.classes)),
                weights=tensors.get("weights"),
                codes=optional.get("codes"),
                decoder=optional.get("decoder"),
                label_top_k=soft.top_k_of(tensors),
                folder=folder,
            )
        except UserError as error:
            raise UserError(f"{folder}: {error}; the artefact is damaged: export it anew") from error
        charged = {key: manifest.ledger.bytes[key] for key in manifests.BYTES}
        if charged != loaded.bytes:
            raise UserError(
                f"{folder / manifests.NAME}: ledger.bytes is {charged}, the files hold {loaded.bytes}; "
                "export the artefact anew"
            )
        return loaded

    @property
    def classes(self) -> list[ClassInfo]:
        """The K classes, ordered by label."""
        return self.manifest.classes

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """Height and width in pixels."""
        return self.images.shape[-1]

    @property
    def packing(self) -> int:
        """Columns and rows of the grid of small images in each stored one; 1 where it is one image."""
        return self.manifest.packing or 1

    def unpacked(self) -> Self:
        """Return the set as students see it: each small image of a grid grown to an image of its own.

        A set that is not packed is returned as it is.
        """
        if self.packing == 1:
            return self
        copies = self.packing**2
        return replace(
            self,
            images=unpack(self.images, self.packing),
            labels=self.labels.repeat_interleave(copies),
            weights=None if self.weights is None else self.weights.repeat_interleave(copies),
            manifest=self.manifest.replaced(packing=None),
        )

    def refuse_packed(self, what: str) -> None:
        """Raise where stored images are grids of small ones, which `what` would take for images.

        Raises:
            UserError: they are.
        """
        if self.packing > 1:
            raise UserError(
                f"{what} takes the images of a set one by one, and this one holds grids of {self.packing} x "
                f"{self.packing} small images; choose a set that is not packed"
            )

    @property
    def counts(self) -> list[int]:
        """Stored images of each class."""
        counts: list[int] = torch.bincount(self.labels, minlength=self.num_classes).tolist()
        return counts

    @property
    def images_per_class(self) -> int | list[int]:
        """IPC if all classes have the same number of images, else the number of each class."""
        return self.counts[0] if len(set(self.counts)) == 1 else self.counts

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes of the stored tensors by kind (`ldd.artefact.manifest.BYTES`)."""
        images, labels = {"images": self.images}, self._label_tensors()
        tables = {"images": images, "codes": self.codes, "labels": labels, "decoder": self.decoder}
        return {key: sum(t.nbytes for t in (tables[key] or {}).values()) for key in manifests.BYTES}

    @property
    def storage(self) -> Storage:
        """What training on the set needs, in numbers and bytes, with the generator if the manifest describes it."""
        prior = self.manifest.prior
        own = Storage.of(
            self.num_classes,
            self.image_size,
            images=self.images,
            codes=self.codes,
            decoder=self.decoder,
            labels=self._label_tensors().values(),
            generator=None if prior is None else Amount(prior.floats, prior.bytes),
            form="codes" if self.is_distribution or self.is_product else "images",
        )
        sent, is_soft = self.manifest.sent, self.soft_labels is not None
        return own if sent is None else sent.charged(own, len(self.images), self.codes, soft=is_soft)

    @property
    def is_distribution(self) -> bool:
        """Whether the codes have a spread and give other images at each draw; `images` are their means."""
        return bool({"log_variance", "factors"} & (self.codes or {}).keys())

    @property
    def is_product(self) -> bool:
        """Whether codes are parts that a class shares, of which `images` are the products."""
        return (self.codes or {}).keys() == PARTS

    def first(self, images_per_class: int) -> Self:
        """Return the set of a nested budget: the first images of each class, with their labels, weights and codes.

        Raises:
            UserError: a number below 1, or above the images of a class.
        """
        if not 1 <= images_per_class <= min(self.counts):
            raise UserError(
                f"budget {images_per_class}: the set's classes have {min(self.counts)} images or more; choose 1 to "
                f"{min(self.counts)}"
            )
        rows = first_rows(self.labels, images_per_class)
        own = None if self.is_product else self.codes  # parts serve many images
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            soft_labels=None if self.soft_labels is None else self.soft_labels[rows],
            weights=None if self.weights is None else self.weights[rows],
            codes=None if own is None else {name: part[rows] for name, part in own.items()},
            manifest=self.manifest.replaced(budget=images_per_class),
        )

    def as_dataset(self, transform: Transform | None = None, normalise: bool = False) -> DistilledDataset:
        """Return a torch data set of (float image, label); `test_transform` makes real images to test on alike.

        Packed images are unpacked.

        Args:
            transform: of each image (3, H, H), at last.
            normalise: subtract and divide by the mean and standard deviation with which the set was made and evaluated;
                else images are in [-1, 1].
        """
        names, seen = [info.name for info in self.classes], self.unpacked()
        return DistilledDataset(
            seen.images, seen.labels, names, self._normalise if normalise else None, transform
        )

    def test_transform(self, normalise: bool = False) -> InputTransform:
        """Return what makes a real image (PIL, or uint8) like the images of `as_dataset(normalise=...)`."""
        return InputTransform(self.image_size, self._normalise if normalise else None)

    def show(self) -> Image.Image:
        """Return a labelled grid of the images, which a notebook shows; `show().show()` opens it elsewhere."""
        return draw_grid(self.images, self.labels, self.classes)

    def __repr__(self) -> str:
        """Return one line."""
        facts = [
            f"{len(self.images)} images of {self.num_classes} classes",
            f"{span(self.counts)} per class",
            f"{self.image_size} x {self.image_size} px",
            f"{sum(self.bytes.values()):,} bytes",
        ]
        held = {"soft labels": self.soft_labels, "weights": self.weights, "codes": self.codes}
        held["decoder"] = self.decoder
        facts += [f"packed {self.packing} x {self.packing}"] * (self.packing > 1)
        facts += [name for name, value in held.items() if value is not None]
        return f"{type(self).__name__}({', '.join(facts)})"

    def _repr_html_(self) -> str:
        """Return HTML for a notebook: the picture above one line of facts."""
        return f'<img src="{data_address(as_png(self.show()))}"><p>{escape(repr(self))}</p>'

    @property
    def _normalise(self) -> Transform:
        """What networks see of float images: the one normalisation of the run."""
        stored = self.manifest["normalisation"]
        return partial(normalised, mean=tuple(stored["mean"]), std=tuple(stored["std"]))

    def summary(self) -> dict[str, Any]:
        """Return what `latentdd inspect` shows, in plain JSON values; `bytes` is a sum."""
        facts = {
            key: value for key, value in self.manifest.items() if key not in ("classes", "config", "sha256")
        }
        return {
            **facts,
            "num_images": len(self.images),
            "num_classes": self.num_classes,
            "images_per_class": self.images_per_class,
            "image_size": self.image_size,
            "classes": [info.to_dict() for info in self.classes],
            "bytes": sum(self.bytes.values()),
            "storage": self.storage.to_dict(),
            "soft_labels": self.soft_labels is not None,
            "weights": self.weights is not None,
            "codes": {name: list(value.shape) for name, value in (self.codes or {}).items()},
            "decoder": self.decoder is not None,
        }

    def _image_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of `images.safetensors`."""
        return {"images": self.images, **self._label_tensors()}

    def _label_tensors(self) -> dict[str, Tensor]:
        probabilities = {} if self.soft_labels is None else soft.stored(self.soft_labels, self.label_top_k)
        weights = {} if self.weights is None else {"weights": self.weights}
        return {"labels": self.labels, **probabilities, **weights}

    def _optional(self) -> dict[str, dict[str, Tensor]]:
        return {k: v for k, v in {"codes": self.codes, "decoder": self.decoder}.items() if v is not None}


def first_rows(labels: Tensor, count: int) -> Tensor:
    """Return the places of the first `count` images of each class among `labels` (N,), ascending."""
    found = [(labels == label).nonzero().flatten()[:count] for label in labels.unique()]
    return torch.cat(found).sort().values
