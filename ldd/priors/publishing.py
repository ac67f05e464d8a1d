"""A prior's folder as it may travel: the files that a reader needs, without what only this machine knows."""

import shutil
from pathlib import Path
from typing import Any

from ldd.disk.files import write_json
from ldd.disk.hub import SCHEME
from ldd.disk.public import public_configuration, public_text
from ldd.disk.shipped import IN_PACKAGE
from ldd.disk.text import read_text
from ldd.errors import UserError
from ldd.priors.folder import CARD, PriorCard, read_optional_card
from ldd.priors.latent_diffusion import COMPONENTS, TEXT, LatentDiffusionPrior
from ldd.priors.loading import locate, read_json, without_weights

README = "README.md"
_FOLDERS = ("scheduler", *COMPONENTS, *(pattern.partition("/")[0] for pattern in TEXT))
_TOKENIZER = "tokenizer_config.json"
_CONFIGS = (CARD, "model_index.json", "config.json", "scheduler_config.json", _TOKENIZER)
"""Of whose values some are paths; the vocabulary of a tokenizer has slashes of its own."""


def publish(prior: str, out: Path, repo: str) -> LatentDiffusionPrior:
    """Copy a prior's components and its card to a new folder, and return the prior.

    Args:
        prior: its folder, or `embedded:NAME`.
        out: the folder.
        repo: `user/name` of the repository that it is meant for, which the card names.

    Raises:
        UserError: no such folder, one that is not a whole prior, or weights that are pickles.
    """
    if not (prior.startswith(IN_PACKAGE) or Path(prior).expanduser().is_dir()):
        raise UserError(f"prior ({prior}): no such folder here; name a prior's folder, or embedded:NAME")
    folder = locate(prior, ())
    if missing := without_weights(folder, COMPONENTS):
        raise UserError(
            f"prior ({prior}) has no safetensors of {', '.join(missing)}, and pickles are not published; save it with "
            "save_pretrained(safe_serialization=True)"
        )
    loaded = LatentDiffusionPrior(str(folder))  # whatever is wrong with it shows before anything is uploaded
    for file in _files(folder):
        target = out / file
        target.parent.mkdir(parents=True, exist_ok=True)
        value = read_json(folder / file, infinite=True) if file.name in _CONFIGS else None
        if value is None or (public := _public(file.name, value)) == value:
            shutil.copyfile(folder / file, target)
        else:
            write_json(target, public)
    (out / README).write_text(_model_card(folder, repo), encoding="utf-8")
    return loaded


def _public(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without local paths; a tokenizer's has secrets in name only, `bos_token` and such."""
    if name != _TOKENIZER:
        return {key: public_configuration(value, key) for key, value in config.items()}
    return {
        key: public_text(value, "") if key.endswith("name_or_path") else value
        for key, value in config.items()
    }


def _files(folder: Path) -> list[Path]:
    """Return paths in the folder of what a reader asks for."""
    own = (CARD, "model_index.json", "class_embedding.safetensors")
    found = [folder / name for name in own] + [
        path
        for name in _FOLDERS
        for end in ("json", "txt", "safetensors")
        for path in (folder / name).glob(f"*.{end}")
    ]
    return sorted({path.relative_to(folder) for path in found if path.is_file()})


def _model_card(folder: Path, repo: str) -> str:
    """Return the folder's own model card, or a short one, with the head that hubs read."""
    card = read_optional_card(folder)
    try:
        text = read_text(folder / README)
    except FileNotFoundError:
        text = _short_card(card)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / README} cannot be read ({error}); repair or remove it") from error
    text = "\n".join(public_text(line, "") for line in text.splitlines()) + "\n"
    if text.startswith("---"):
        return text
    known = card is not None and card.licence != "unknown"
    head = [
        f"license: {'other' if known else 'unknown'}",
        "library_name: diffusers",
        "tags: [latentdd, dataset-distillation]",
    ]
    address = f"{SCHEME}{repo}"
    use = (
        f'`ldd.LatentDiffusionPrior("{address}")`, or `latentdd fit --model.prior.path_or_hub_id {address}`.'
    )
    return "\n".join(["---", *head, "---", "", text, "## From the hub", "", use, ""])


def _short_card(card: PriorCard | None) -> str:
    if card is None:
        return "# Latent diffusion prior\n"
    names = ", ".join(info.name for info in card.classes[:20])
    more = f" and {len(card.classes) - 20} more" if len(card.classes) > 20 else ""
    classes = f"\nClasses: {names}{more}.\n" if names else ""
    return (
        f"# Latent diffusion prior, {card.image_size} px\n{classes}\nLicence of the weights: {card.licence}\n"
    )
