"""What a prior folder says of itself (`prior.json` and the head of its model card), and how one is written."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from diffusers import DiTTransformer2DModel, ModelMixin, SchedulerMixin, VQModel
from torch import Tensor

from ldd.disk.files import atomic_folder, read_tensors, write_json, write_tensors
from ldd.disk.text import parse_yaml, read_text
from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.priors.loading import read_json

CARD = "prior.json"
Form = Literal["dit", "sit"]
"""Original diffusion transformers, whose timestep embedding is not diffusers', see `DiffusionTransformer`."""

LEFT_OUT = "the test split left out has fingerprint "
"""Words of a model card before the fingerprint, over names and sizes, of test images that the prior has not seen."""

LEARNED = "learned.safetensors"
"""Which images a prior has learned: `images`, hashes of their contents (`ldd.data.fingerprints.short_hashes`)."""

_LICENCE = 200  # characters: of terms, not their text


@dataclass(frozen=True)
class PriorCard:
    """What `prior.json` says.

    Attributes:
        classes: the prior's own classes; `label` is the row of its class table. Empty without a class table.
        null_class: row of the null condition; -1 without a class table.
        image_size: pixels the prior was trained at.
        licence: terms of the weights.
        form: the original code whose arithmetic a transformer follows; None for diffusers' own.
        guidance: scale of the classifier-free guidance that was learned in; None for a prior that is guided when it
            is used.
        data: fingerprints by contents of the splits it was trained beside (`ldd.data.fingerprints`); it has learned
            `core_set`, which is `train` where nothing was pruned. None where it does not say.
    """

    classes: Sequence[ClassInfo]
    null_class: int
    image_size: int
    licence: str
    form: Form | None = None
    guidance: float | None = None
    data: Mapping[str, str] | None = None

    def check_table(self, num_rows: int, table: str) -> None:
        """Raise unless a class table of `num_rows` rows holds the classes and the null row."""
        if not 0 <= self.null_class < num_rows or len(self.classes) > num_rows:
            raise UserError(
                f"{CARD} names {len(self.classes)} classes and null_class {self.null_class}, but {table} "
                f"{num_rows} rows"
            )


def read_card(folder: Path, *, table: bool = True) -> PriorCard:
    """Read `prior.json` of a prior folder; with `table` it must name classes and the null row."""
    path = folder / CARD
    if not path.is_file():
        raise UserError(f"component {CARD!r} is missing in {folder}")
    card = read_json(path)
    if not table:
        card = {"classes": [], "null_class": -1} | card
    try:
        classes = [
            ClassInfo(label=row, id=_whole(entry["id"]), wnid=_name(entry["wnid"]), name=_name(entry["name"]))
            for row, entry in enumerate(card["classes"])
        ]
        null_class, image_size = _whole(card["null_class"]), _whole(card["image_size"])
        if image_size < 1 or (table and null_class < 0):
            raise ValueError(f"image_size {image_size}, null_class {null_class}")
        form = card.get("form")
        if form not in (None, *get_args(Form)):
            raise ValueError(f"form {form!r} is not one of {', '.join(get_args(Form))}")
        guidance = card.get("guidance")
        if guidance is not None and not (type(guidance) in (int, float) and guidance > 0):
            raise ValueError(f"guidance {guidance!r} is not a positive number")
        licence = _words(card.get("licence"))
        data = card.get("data")
        texts = isinstance(data, Mapping) and all(isinstance(value, str) for value in data.values())
        if data is not None and not texts:
            raise ValueError(f"data {data!r} does not map splits to fingerprints")
        return PriorCard(classes, null_class, image_size, licence, cast("Form | None", form), guidance, data)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is malformed ({type(error).__name__}: {error}); it needs classes (each with id, wnid, "
            "name), null_class and image_size"
        ) from error


def read_optional_card(folder: Path) -> PriorCard | None:
    """Read `prior.json` where there is one; it need not have a class table."""
    return read_card(folder, table=False) if (folder / CARD).is_file() else None


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**31:
        raise ValueError(f"{value!r} is not the number of a row, a class or pixels")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not a name")
    return str(value)


def read_licence(folder: Path) -> str:
    """Return the licence that the head of a folder's model card states (`license:` in `README.md`), or "unknown"."""
    try:
        text = read_text(folder / "README.md", errors="replace")
        head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        facts = parse_yaml(head[1]) if head else None
    except Exception:  # no card, or text that leads the parser to anything, a date out of range for example
        facts = None
    licence = (facts.get("license_name") or facts.get("license")) if isinstance(facts, dict) else None
    return _words(licence)


def read_learned(folder: Path) -> Tensor | None:
    """Return which images a prior has learned, as `write_prior` was told; None where it does not say."""
    if not (folder / LEARNED).is_file():
        return None
    images = read_tensors(folder / LEARNED).get("images")
    if images is None or images.ndim != 1 or images.is_floating_point():
        raise UserError(
            f"{folder / LEARNED} does not hold hashes of images; delete it, or train the prior anew"
        )
    return images


def read_left_out(folder: Path) -> str | None:
    """Return the fingerprint of the test images that a folder's model card says were left out; None without one."""
    try:
        stated = re.search(rf"{LEFT_OUT}([0-9a-f]+)", read_text(folder / "README.md", errors="replace"))
    except (OSError, ValueError):
        return None
    return None if stated is None else stated[1]


def _words(licence: object) -> str:
    """Return a licence as a line of text; "unknown" for none."""
    words = " ".join(str(licence).split()) if licence else "unknown"
    return "".join(filter(str.isprintable, words))[:_LICENCE]


def write_prior(
    folder: Path | str,
    *,
    network: ModelMixin,
    autoencoder: ModelMixin,
    scheduler: SchedulerMixin,
    class_embedding: Tensor | None,
    card: PriorCard,
    readme: str,
    learned: Tensor | None = None,
) -> Path:
    """Write a folder that `LatentDiffusionPrior` reads; an existing one is replaced once the new one is complete.

    `class_embedding` is (rows, D), the null row included; None for an unconditional prior. Tensors keep their type.
    `learned` says which images it has seen (`LEARNED`), where that is known.
    """
    with atomic_folder(folder) as beside:
        component = "transformer" if isinstance(network, DiTTransformer2DModel) else "unet"
        network.save_pretrained(beside / component, safe_serialization=True)
        name = "vqvae" if isinstance(autoencoder, VQModel) else "vae"
        autoencoder.save_pretrained(beside / name, safe_serialization=True)
        scheduler.save_pretrained(beside / "scheduler")
        for config in beside.glob("*/*.json"):  # diffusers writes where a component was loaded from
            write_json(config, {k: v for k, v in read_json(config).items() if k != "_name_or_path"})
        if class_embedding is not None:
            write_tensors(beside / "class_embedding.safetensors", {"weight": class_embedding})
        if learned is not None:
            write_tensors(beside / LEARNED, {"images": learned})
        write_json(
            beside / CARD,
            {
                "classes": [{"id": info.id, "wnid": info.wnid, "name": info.name} for info in card.classes],
                "null_class": card.null_class,
                "image_size": card.image_size,
                "licence": card.licence,
                **{
                    name: value
                    for name, value in (("form", card.form), ("guidance", card.guidance), ("data", card.data))
                    if value is not None
                },
            },
        )
        (beside / "README.md").write_text(readme, encoding="utf-8")
    return Path(folder)
