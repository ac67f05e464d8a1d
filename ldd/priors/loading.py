"""Find a prior's folder (local, embedded in the package, or on a model hub) and load its components.

Whatever is wrong with a folder ends in a UserError that names the component and the cure. Weights are read
from safetensors or, where a published model has none, from `.bin` files by torch's unpickler for tensors only;
components come back in float32, frozen and in eval mode.
"""

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from diffusers import ModelMixin
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldd.disk import files
from ldd.errors import UserError
from ldd.runtime.seeding import seeded

EMBEDDED = Path(__file__).parent / "embedded"
Init = Literal["pretrained", "random"]
"""Whether a network has the weights of its file, or random ones of the same shapes."""

_WEIGHTS = "diffusion_pytorch_model"
# Names under which older releases saved a class, whose config may still not fit.
_LEGACY = {"Transformer2DModel": "DiTTransformer2DModel"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def locate(path_or_hub_id: str, components: Sequence[str], further: Sequence[str] = ()) -> Path:
    """Return the local folder that `path_or_hub_id` means; a hub id is downloaded first.

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
    except Exception as error:  # the hub client passes on errors of its HTTP library, which differ by release
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
    """Read the object in a JSON file.

    Raises:
        UserError: missing, unreadable, or not a JSON object.
    """
    value = files.read_json(path, "restore it from where the prior came from")
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; restore it from where the prior came from")
    return value


def class_name(folder: Path) -> str | None:
    """Return the name of the diffusers class that saved a component folder; None without such a folder."""
    config = folder / "config.json"
    if not config.is_file():
        return None
    name = read_json(config).get("_class_name")
    return name if isinstance(name, str) else None


def load_model(folder: Path, kinds: Sequence[type[ModelMixin]], *, init: Init = "pretrained") -> ModelMixin:
    """Load the diffusers model in `folder`: float32, frozen, in eval mode.

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
    # Loading draws placeholder weights before it fills them; the caller's random numbers must stay as they are.
    with seeded(0, "placeholder weights"):
        model, report = kind.from_pretrained(
            str(folder), torch_dtype=torch.float32, use_safetensors=safe, local_files_only=True,
            low_cpu_mem_usage=False, output_loading_info=True,
        )  # fmt: skip
    return model, report


def load_tensor(path: Path, key: str) -> Tensor:
    """Load one tensor of a safetensors file, in float32.

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


def _embedded(name: str) -> Path:
    folder = EMBEDDED / name.removeprefix("embedded:")
    known = sorted(card.parent.name for card in EMBEDDED.glob("*/prior.json"))
    if folder.name not in known:
        choices = ", ".join(f"embedded:{choice}" for choice in known) or "none"
        raise UserError(f"path_or_hub_id={name!r}: no such prior in the package; embedded priors: {choices}")
    return folder


def _damaged(path: Path, reason: object) -> str:
    return f"{path} cannot be loaded ({reason}); the file is damaged or incomplete, fetch or save it again"
