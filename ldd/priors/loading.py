"""Finding a prior's folder (local, embedded in the package, or on a model hub) and reading its components.

Whatever is wrong with a folder ends in a UserError that names the component and the cure. Weights are read
from safetensors or, where a published model has none, from `.bin` files by torch's unpickler for tensors only;
components come back in float32, frozen and in eval mode.
"""

import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import yaml
from diffusers import DDIMScheduler, ModelMixin
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldd.disk import files
from ldd.errors import UserError
from ldd.images import ClassInfo
from ldd.runtime.seeding import seeded

EMBEDDED = Path(__file__).parent / "embedded"
Init = Literal["pretrained", "random"]
"""Whether a network keeps the weights of its file or gets random ones of the same shapes."""

_WEIGHTS = "diffusion_pytorch_model"
# Names under which older releases saved a class; what the config says beyond decides.
_LEGACY = {"Transformer2DModel": "DiTTransformer2DModel"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class PriorCard:
    """What `prior.json` says.

    Attributes:
        classes: the prior's own classes; `label` is the row of its class table. Empty without a class table.
        null_class: row of the null condition; -1 without a class table.
        image_size: pixels the prior was trained at.
        licence: terms of the weights.
    """

    classes: list[ClassInfo]
    null_class: int
    image_size: int
    licence: str


def locate(path_or_hub_id: str, components: Sequence[str], further: Sequence[str] = ()) -> Path:
    """The local folder that `path_or_hub_id` means; a hub id is downloaded first.

    Args:
        path_or_hub_id: `embedded:NAME` (in the package), a folder, or `owner/name` on the hub.
        components: subfolders whose diffusers weights are wanted from the hub; configs are always fetched.
        further: patterns of other files wanted from the hub.

    Raises:
        UserError: unknown embedded name, missing folder, hub unreachable or without that id.
    """
    if path_or_hub_id.startswith("embedded:"):
        return _embedded(path_or_hub_id)
    folder = Path(path_or_hub_id).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(
            f"path_or_hub_id={path_or_hub_id!r} is a file; give the folder that holds the components"
        )
    if not _HUB_ID.fullmatch(path_or_hub_id):
        raise UserError(
            f"path_or_hub_id={path_or_hub_id!r}: no such folder; give an existing folder, embedded:NAME, "
            "or the id of a model on the hub (owner/name)"
        )
    try:
        return _fetch(path_or_hub_id, components, further)
    except (
        Exception
    ) as error:  # the hub client passes on its HTTP library's errors, which differ between releases
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        cure = "check the id and the network"
        if isinstance(error, GatedRepoError):
            cure = "it is gated: accept its terms on its page and log in (`hf auth login`)"
        raise UserError(
            f"path_or_hub_id={path_or_hub_id!r}: no such folder here, and the hub model of that id could not "
            f"be fetched ({reason}); {cure}, or download it elsewhere (`hf download {path_or_hub_id}`) and give the "
            "local folder"
        ) from error


def _fetch(name: str, components: Sequence[str], further: Sequence[str]) -> Path:
    """Download configs, model card and weights; `.bin` files only of components without safetensors."""
    places = ("", *(f"{component}/" for component in components))
    weights = [f"{place}{_WEIGHTS}{end}" for place in places
               for end in (".safetensors", "-?????-of-?????.safetensors")]  # fmt: skip
    card = ("*.json", "README.md", "class_embedding.safetensors")
    folder = Path(snapshot_download(name, allow_patterns=[*card, *further, *weights]))
    pickled = [
        f"{place}{_WEIGHTS}.bin"
        for place in places
        if class_name(folder / place) and not any((folder / place).glob("*.safetensors"))
    ]
    if pickled:
        folder = Path(snapshot_download(name, allow_patterns=pickled))
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: missing, unreadable, or not a JSON object.
    """
    value = files.read_json(path, "restore it from where the prior came from")
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; restore it from where the prior came from")
    return value


def class_name(folder: Path) -> str | None:
    """The diffusers class a component folder was saved by, or None where there is no such folder."""
    config = folder / "config.json"
    if not config.is_file():
        return None
    name = read_json(config).get("_class_name")
    return name if isinstance(name, str) else None


def load_model(folder: Path, kinds: Sequence[type[ModelMixin]], *, init: Init = "pretrained") -> ModelMixin:
    """The diffusers model in `folder`, float32, frozen, in eval mode.

    Args:
        folder: `config.json` and `diffusion_pytorch_model*.safetensors` (or `.bin`).
        kinds: the classes it may be of.
        init: `random` builds it from its config alone, with the same random weights every time.

    Raises:
        UserError: missing folder or weights, another class, damaged or incomplete weights, unknown `init`.
    """
    if init not in get_args(Init):
        raise UserError(f"init={init!r} is unknown; choose one of {', '.join(get_args(Init))}")
    name = class_name(folder)
    if name is None:
        raise UserError(f"component {folder.name!r} is missing: no diffusers config.json in {folder}")
    kind = next((kind for kind in kinds if kind.__name__ in (name, _LEGACY.get(name))), None)
    if kind is None:
        choices = ", ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{folder} holds a {name}; supported here: {choices}")
    try:
        if init == "random":
            with seeded(0, "random weights"):
                return kind.from_config(kind.load_config(str(folder))).requires_grad_(False).eval()
        model, report = _load_weights(folder, kind)
    except (
        OSError, ValueError, RuntimeError, TypeError, NotImplementedError, SafetensorError, pickle.UnpicklingError
    ) as error:  # fmt: skip
        if isinstance(error, UserError):
            raise
        raise UserError(_damaged(folder, error)) from error
    # The library fills what a file lacks with random numbers and only logs it.
    if report["missing_keys"]:
        raise UserError(
            _damaged(folder, f"{len(report['missing_keys'])} tensors missing, {report['missing_keys'][0]}")
        )
    return model.requires_grad_(False).eval()


def _load_weights(folder: Path, kind: type[ModelMixin]) -> tuple[ModelMixin, dict[str, list[str]]]:
    """The model and the library's report on its weights."""
    safe = any((folder / f"{_WEIGHTS}{end}").is_file() for end in (".safetensors", ".safetensors.index.json"))
    if not safe and not (folder / f"{_WEIGHTS}.bin").is_file():
        raise UserError(
            f"component {folder.name!r} has no {_WEIGHTS}.safetensors in {folder}; "
            "save it with save_pretrained(safe_serialization=True)"
        )
    # Loading draws placeholder weights before it fills them; the caller's random numbers must not notice.
    with seeded(0, "placeholder weights"):
        model, report = kind.from_pretrained(
            str(folder), torch_dtype=torch.float32, use_safetensors=safe, local_files_only=True,
            low_cpu_mem_usage=False, output_loading_info=True,
        )  # fmt: skip
    return model, report


def load_scheduler(folder: Path) -> DDIMScheduler:
    """The scheduler in `folder` as DDIM, whichever scheduler of the family saved it.

    Raises:
        UserError: missing or unreadable config, a noise table DDIM does not know, or another scheduler's
            config that leaves clipping open (DDIM's default would clip latents to [-1, 1]).
    """
    path = folder / "scheduler_config.json"
    if not path.is_file():
        raise UserError(f"component {folder.name!r} is missing: no scheduler_config.json in {folder}")
    config = read_json(path)
    saved_by = config.get("_class_name", "unnamed scheduler")
    if saved_by != "DDIMScheduler" and "clip_sample" not in config:
        raise UserError(
            f"{path} is the config of a {saved_by} and does not say clip_sample; read as DDIM it would clip "
            'latents to [-1, 1]. Add "clip_sample": false (or true, if meant), or save a DDIMScheduler there'
        )
    try:
        return DDIMScheduler.from_config(config)
    except (NotImplementedError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} cannot be used as DDIMScheduler: {error}") from error


def load_tensor(path: Path, key: str) -> Tensor:
    """One tensor of a safetensors file, in float32.

    Raises:
        UserError: missing or damaged file, missing key.
    """
    if not path.is_file():
        raise UserError(f"component {path.name!r} is missing in {path.parent}")
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
            if key not in keys:
                raise UserError(f"{path} has no tensor {key!r}, only {', '.join(keys)}")
            tensor: Tensor = file.get_tensor(key)
    except (OSError, SafetensorError) as error:
        raise UserError(_damaged(path, error)) from error
    return tensor.float()


def read_card(folder: Path, *, table: bool = True) -> PriorCard:
    """`prior.json` of a prior folder.

    Args:
        folder: the prior folder.
        table: the prior has a class table, so `classes` and `null_class` must be there.

    Raises:
        UserError: missing file, missing or malformed entry.
    """
    path = folder / "prior.json"
    if not path.is_file():
        raise UserError(f"component 'prior.json' is missing in {folder}")
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
        return PriorCard(classes, null_class, image_size, str(card.get("licence", "unknown")))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is malformed ({type(error).__name__}: {error}); it needs classes (each with id, wnid, "
            "name), null_class and image_size"
        ) from error


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 2**31:
        raise ValueError(f"{value!r} is no number of a row, a class or pixels")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no name")
    return str(value)


def read_licence(folder: Path) -> str:
    """The licence that the head of a folder's model card states (`license:` in `README.md`), or "unknown"."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        facts = yaml.safe_load(head[1]) if head else None
    except Exception:  # a date that is none, say: the parser raises whatever the text leads it to
        facts = None
    licence = (facts.get("license_name") or facts.get("license")) if isinstance(facts, dict) else None
    return str(licence) if licence else "unknown"


def _embedded(name: str) -> Path:
    folder = EMBEDDED / name.removeprefix("embedded:")
    known = sorted(card.parent.name for card in EMBEDDED.glob("*/prior.json"))
    if folder.name not in known:
        choices = ", ".join(f"embedded:{choice}" for choice in known) or "none"
        raise UserError(f"path_or_hub_id={name!r}: no such prior in the package; embedded priors: {choices}")
    return folder


def _damaged(path: Path, reason: object) -> str:
    return f"{path} cannot be loaded ({reason}); the file is damaged or incomplete, fetch or save it again"
