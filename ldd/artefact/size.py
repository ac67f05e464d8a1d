"""Storage cost of a distilled set: numbers, bytes, and as many images per class as would cost the same."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ldd.errors import check_at_least

_SAME_BYTES = 0.1

Form = Literal["images", "codes"]
"""What students are trained on: the stored images, or images that codes (and a decoder) give anew each time."""


@dataclass(frozen=True)
class Amount:
    """A quantity of stored values.

    Attributes:
        floats: stored numbers, pixels included; whole numbers that only name a class do not count.
        bytes: at the stored precision.
    """

    floats: int = 0
    bytes: int = 0

    def __post_init__(self) -> None:
        check_at_least(0, floats=self.floats, bytes=self.bytes)

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.floats + other.floats, self.bytes + other.bytes)

    @classmethod
    def of(cls, tensors: Iterable[Tensor], *, pixels: bool = False) -> Self:
        """Return the amount of tensors on any device, `meta` included; with `pixels`, all whole numbers count as well.

        Numbers of eight bits always count: they are probabilities, not names of classes.
        """
        tensors = list(tensors)
        return cls(
            sum(t.numel() for t in tensors if pixels or t.is_floating_point() or t.dtype == torch.uint8),
            sum(tensor.nbytes for tensor in tensors),
        )


@dataclass(frozen=True)
class Units:
    """What a set has for each class, on average: the three ways in which papers count.

    Attributes:
        images: as students see them, small ones of a grid each on its own; None where they are drawn without end.
        pixels: stored; a grid of small images has those of one.
        bytes: of all that training needs.
    """

    images: float | None
    pixels: float
    bytes: float

    def same_images(self, other: "Units") -> bool:
        """Whether two sets have equally many images for each class."""
        return self.images is not None and self.images == other.images

    def same_bytes(self, other: "Units") -> bool:
        """Whether the bytes of two sets differ by a tenth at most, as whole images cannot be cut."""
        return abs(self.bytes - other.bytes) <= _SAME_BYTES * max(self.bytes, other.bytes)


@dataclass(frozen=True)
class Storage:
    """Storage cost of a set, part by part: the first dimension of D3's report (arXiv 2403.00999).

    One image per class is K x 3 x H x H numbers; an IPC-equivalent is a quantity divided by that (numbers by numbers,
    bytes by the bytes of uint8 images). The form `codes` leaves out the images, which codes and decoder give; the form
    `images` leaves out codes, decoder and generator.

    Attributes:
        num_classes: K.
        image_size: H.
        images: the images, as bytes.
        codes: latents, statistics, conditions.
        decoder: weights that were trained with the codes, of all sub-tasks.
        labels: hard labels (no numbers, but bytes), soft labels and weights.
        generator: the frozen weights that turn codes into images; None if unknown.
        form: in which students use the set.
    """

    num_classes: int
    image_size: int
    images: Amount = Amount()
    codes: Amount = Amount()
    decoder: Amount = Amount()
    labels: Amount = Amount()
    generator: Amount | None = None
    form: Form = "images"

    @classmethod
    def of(
        cls,
        num_classes: int,
        image_size: int,
        *,
        images: Tensor | None = None,
        codes: Mapping[str, Tensor] | None = None,
        decoder: Mapping[str, Tensor] | None = None,
        labels: Iterable[Tensor] = (),
        generator: Amount | None = None,
        form: Form = "images",
    ) -> Self:
        """Return the cost of stored tensors, on any device (`meta` included)."""
        return cls(
            num_classes,
            image_size,
            images=Amount.of([] if images is None else [images], pixels=True),
            codes=Amount.of((codes or {}).values()),
            decoder=Amount.of((decoder or {}).values()),
            labels=Amount.of(labels),
            generator=generator,
            form=form,
        )

    def total(self, *, labels: bool = True, generator: bool = False, form: Form | None = None) -> Amount:
        """Return all that training on the set needs in a `form` (None: the one that students use)."""
        form = self.form if form is None else form
        needed = self.images if form == "images" else self.codes + self.decoder
        if labels:
            needed += self.labels
        if generator and form == "codes" and self.generator is not None:
            needed += self.generator
        return needed

    def images_per_class(self, amount: Amount) -> float:
        """Return the IPC-equivalents of an amount, by its numbers."""
        return amount.floats / (self.num_classes * 3 * self.image_size**2)

    def units(self, images: int | None) -> Units:
        """Return what each class has of a set whose students see so many `images` (None: drawn without end)."""
        each = None if images is None else images / self.num_classes
        return Units(each, self.images.floats / 3 / self.num_classes, self.total().bytes / self.num_classes)

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms in which the set is stored, the one in use first."""
        stored: dict[Form, bool] = {"images": self.images.floats > 0, "codes": self.codes.floats > 0}
        return tuple(sorted((form for form in stored if stored[form]), key=lambda form: form != self.form))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: totals of the form in use, then every part and form."""
        parts = {name: asdict(getattr(self, name)) for name in ("images", "codes", "decoder", "labels")}
        return {
            "form": self.form,
            **self._figures(self.form),
            "parts": {**parts, "generator": None if self.generator is None else asdict(self.generator)},
            "forms": {form: self._figures(form) for form in self.forms},
        }

    def _figures(self, form: Form) -> dict[str, Any]:
        unknown = form == "codes" and self.generator is None

        def equivalents(labels: bool, generator: bool) -> float | None:
            if generator and unknown:
                return None
            return self.images_per_class(self.total(labels=labels, generator=generator, form=form))

        charged = self.total(form=form)
        return {
            **asdict(charged),
            "ipc_equivalents": equivalents(labels=True, generator=False),
            "ipc_equivalents_without_labels": equivalents(labels=False, generator=False),
            "ipc_equivalents_with_generator": equivalents(labels=True, generator=True),
            "ipc_equivalents_with_generator_without_labels": equivalents(labels=False, generator=True),
            "ipc_equivalents_in_bytes": charged.bytes / (self.num_classes * 3 * self.image_size**2),
        }


def span(counts: Sequence[int]) -> str:
    """Return in words how many images a class has, "10" or "9 to 12"."""
    least, most = min(counts), max(counts)
    return str(least) if least == most else f"{least} to {most}"
