"""Find a prior's folder (local, embedded in the package, or on a model hub) and load its components.

Whatever is wrong with a folder ends in a UserError that names the component and the cure. Weights are read
from safetensors or, where a published model has none, from `.bin` files by torch's unpickler for tensors only;
components come back in float32, frozen and in eval mode.
"""

import logging
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from diffusers import ModelMixin
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ldd.disk import files
from ldd.disk.hub import fetch, is_address
from ldd.disk.shipped import IN_PACKAGE, embedded_folder
from ldd.disk.stores import fetched, is_url
from ldd.errors import UserError
from ldd.runtime.seeding import seeded

EMBEDDED = Path(__file__).parent / "embedded"
Init = Literal["pretrained", "random"]
"""Whether a network has the weights of its file, or random ones of the same shapes."""

Model = TypeVar("Model", bound=nn.Module)

_DAMAGED = (
    OSError, ValueError, RuntimeError, TypeError, KeyError, NotImplementedError, SafetensorError, pickle.UnpicklingError
)  # fmt: skip
_WEIGHTS = "diffusion_pytorch_model"
# Names under which older releases saved a class, whose config may still not fit.
_LEGACY = {"Transformer2DModel": "DiTTransformer2DModel"}
_NORM = "ada_norm_zero"  # of a DiT; other transformers had that name, too
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def locate(path_or_hub_id: str, components: Sequence[str], further: Sequence[str] = ()) -> Path:
    """Return the local folder of `embedded:NAME` (in the package), of a path or a URL, or of a model on the hub.

    From the hub come all configs, weights of these `components` (subfolders), and files that match `further`. It is
    named `owner/name`, or `hf://owner/name[@revision]`, of which no pickle is read.
    """
    if path_or_hub_id.startswith(IN_PACKAGE):
        return embedded_folder(path_or_hub_id, EMBEDDED, "prior.json", "path_or_hub_id", "prior")
    if is_address(path_or_hub_id):
        return _fetch_safe(path_or_hub_id, components, further)
    if is_url(path_or_hub_id):
        return fetched(path_or_hub_id, "path_or_hub_id")
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
            "or the id of a model on the hub (owner/name or hf://owner/name)"
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
    folder = Path(snapshot_download(name, allow_patterns=_wanted(components, further)))
    if variants := _variants(folder, components, further):
        folder = Path(snapshot_download(name, allow_patterns=variants))
    pickled = [f"{component}/{_WEIGHTS}.bin" for component in without_weights(folder, components)]
    if pickled:
        folder = Path(snapshot_download(name, allow_patterns=[file.removeprefix("./") for file in pickled]))
    return folder


def _fetch_safe(name: str, components: Sequence[str], further: Sequence[str]) -> Path:
    """Download configs, model card and weights, all as JSON, text and safetensors."""
    texts = [f"{part}{end}" for part in further for end in (".json", ".txt") if part.endswith("*")]
    tensors = [part for part in further if part.endswith(".safetensors")]
    folder = fetch(name, "model", _wanted(components, [*texts, *tensors]), "path_or_hub_id")
    if variants := _variants(folder, components, tensors):
        folder = fetch(name, "model", variants, "path_or_hub_id", needed=False)
    if missing := without_weights(folder, components):
        raise UserError(
            f"path_or_hub_id={name!r} has no safetensors of {', '.join(missing)}, and pickles are not read from hf://; "
            "save the prior with save_pretrained(safe_serialization=True), or give the id without hf:// to have torch "
            "read the tensors, and nothing else, of its .bin files"
        )
    return folder


def _wanted(components: Sequence[str], further: Sequence[str]) -> list[str]:
    """Patterns of configs, model card and weights; the prior's own come first."""
    weights = [f"{place}{_WEIGHTS}{end}" for place in ("", *(f"{component}/" for component in components))
               for end in (".safetensors", "-?????-of-?????.safetensors")]  # fmt: skip
    return ["*.json", "README.md", "class_embedding.safetensors", *further, *weights]


def without_weights(folder: Path, components: Sequence[str]) -> list[str]:
    """Return names of the components (`.` is the folder itself) that have a config and no safetensors."""
    return [
        component
        for component in (".", *components)
        if class_name(folder / component) and not any((folder / component).glob("*.safetensors"))
    ]


def _variants(folder: Path, components: Sequence[str], further: Sequence[str]) -> list[str]:
    """Patterns of half-precision weights, of what has come with a config and without safetensors."""
    stems = [f"{component}/{_WEIGHTS}" for component in without_weights(folder, components)]
    for pattern in further:
        place = (folder / pattern).parent
        if pattern.endswith(".safetensors") and (place / "config.json").is_file():
            stems += [] if any(place.glob("*.safetensors")) else [pattern.removesuffix(".safetensors")]
    ends = (".fp16-*.safetensors", ".fp16.safetensors")
    return [f"{stem.removeprefix('./')}{end}" for stem in stems for end in ends]


def find_variant(folder: Path, stem: str = _WEIGHTS) -> str | None:
    """Return the variant (`fp16`) in which alone the safetensors of a component lie; None for plain ones, or none."""
    if any((folder / f"{stem}{end}").is_file() for end in (".safetensors", ".safetensors.index.json")):
        return None
    pattern = re.compile(rf"{stem}(?:\.(\w+)\.safetensors|\.safetensors\.index\.(\w+)\.json)")
    found = {match[1] or match[2] for path in folder.iterdir() if (match := pattern.fullmatch(path.name))}
    return "fp16" if "fp16" in found else min(found, default=None)


def read_json(path: Path, *, infinite: bool = False) -> dict[str, Any]:
    """Read the object in a JSON file, see `ldd.disk.files.read_json`."""
    value = files.read_json(path, "restore it from where the prior came from", infinite=infinite)
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
    """Load the diffusers model in `folder`, of one of the classes `kinds`: float32, frozen, in eval mode."""
    if init not in get_args(Init):
        raise UserError(f"init={init!r} is unknown; choose one of {', '.join(get_args(Init))}")
    name = class_name(folder)
    if name is None:
        raise UserError(f"component {folder.name!r} is missing: no diffusers config.json in {folder}")
    kind = next((kind for kind in kinds if kind.__name__ in (name, _LEGACY.get(name))), None)
    norm = read_json(folder / "config.json").get("norm_type", _NORM) if name in _LEGACY else _NORM
    if kind is None or norm != _NORM:
        name = (
            name if norm == _NORM else f"{name} of another kind (norm_type={norm!r}; PixArt's for instance)"
        )
        choices = ", ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{folder} holds a {name}; supported here: {choices}")
    if init == "random":
        with reading(folder), seeded(0, "random weights"):
            return kind.from_config(kind.load_config(str(folder))).requires_grad_(False).eval()
    variant = find_variant(folder)
    safe = variant is not None or any(
        (folder / f"{_WEIGHTS}{end}").is_file() for end in (".safetensors", ".safetensors.index.json")
    )
    if not safe and not (folder / f"{_WEIGHTS}.bin").is_file():
        raise UserError(
            f"component {folder.name!r} has no {_WEIGHTS}.safetensors in {folder}; "
            "save it with save_pretrained(safe_serialization=True)"
        )
    with reading(folder):
        model, report = kind.from_pretrained(
            str(folder), torch_dtype=torch.float32, use_safetensors=safe, local_files_only=True,
            low_cpu_mem_usage=False, output_loading_info=True, variant=variant,
        )  # fmt: skip
        return frozen(model, report)


class _Unspoken(logging.Filter):
    """Drops diffusers' warning of an attribute that its own class writes into the config of each AutoencoderTiny."""

    _ITS_OWN = re.compile(r"attributes \{'block_out_channels': [^'{}]*\} were passed to AutoencoderTiny")

    def filter(self, record: logging.LogRecord) -> bool:
        return not self._ITS_OWN.search(record.getMessage())


logging.getLogger("diffusers.configuration_utils").addFilter(_Unspoken())


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what libraries raise for a damaged file or folder into a UserError."""
    try:
        # Loading draws placeholder weights before it fills them; the caller's random numbers must stay as they are.
        with seeded(0, "placeholder weights"):
            yield
    except UserError:
        raise
    except _DAMAGED as error:
        raise UserError(
            f"{path} cannot be loaded ({error}); a file is damaged or incomplete, fetch or save it again"
        ) from error


def frozen(model: Model, report: Mapping[str, Any]) -> Model:
    """Return a loaded model for use; raise within `reading` for missing tensors, which libraries fill at random."""
    if missing := list(report["missing_keys"]):
        raise ValueError(f"{len(missing)} tensors missing, {missing[0]}")
    for name, tensor in model.state_dict().items():
        _check_finite(name, tensor)
    model.requires_grad_(False).eval()
    return model


def load_tensor(path: Path, key: str) -> Tensor:
    """Load one tensor of a safetensors file, in float32."""
    if not path.is_file():
        raise UserError(f"component {path.name!r} is missing in {path.parent}")
    with reading(path), safe_open(path, framework="pt") as file:
        keys = list(file.keys())
        if key not in keys:
            raise UserError(f"{path} has no tensor {key!r}, only {', '.join(keys)}")
        tensor: Tensor = file.get_tensor(key)
        _check_finite(key, tensor)
        return tensor.float()


def _check_finite(name: str, tensor: Tensor) -> None:
    """Raise within `reading` for numbers that no training leaves; what is made with them would be black."""
    if not tensor.isfinite().all():
        raise ValueError(f"tensor {name} holds NaN or infinite values")
