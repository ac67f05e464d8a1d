"""An export on a data-set hub: what would be uploaded, and the upload."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not in its __all__

from ldd.distilled import DistilledSet
from ldd.errors import UserError
from ldd.files import atomic_file
from ldd.formats.card import make_card

CARD = "README.md"
FORMATS = ("parquet", "webdataset")
"""What hubs read, show and stream."""

# Its bases are its transport's error, which is that of another library in every other release.
_UNREACHABLE: Any = (*HfHubHTTPError.__bases__, OSError)


@dataclass(frozen=True)
class Upload:
    """An exported folder on its way to a hub.

    Attributes:
        folder: of the export, with the card.
        repo: `user/name`.
        private: a repository that is made for it is not shown to others.
    """

    folder: Path
    repo: str
    private: bool

    @property
    def files(self) -> dict[str, int]:
        """Path in the repository -> bytes."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in found}

    def send(self) -> str:
        """Make the repository where it is missing and upload all files as one commit; shards of earlier uploads go.

        The address of the hub (`HF_ENDPOINT`) and the token (`HF_TOKEN`, `hf auth login`) are the library's own.

        Returns:
            Address of the commit.

        Raises:
            UserError: no token, no permission, or a hub that cannot be reached or refuses.
        """
        hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
        try:
            hub.create_repo(self.repo, repo_type="dataset", private=self.private, exist_ok=True)
            commit = hub.upload_folder(
                repo_id=self.repo,
                folder_path=self.folder,
                repo_type="dataset",
                delete_patterns=["data/train-*"],
                commit_message=f"{len(self.files)} files by latentdd export",
            )
        except LocalTokenNotFoundError as error:
            raise UserError(f"push_to_hub ({self.repo}): no token; log in with `hf auth login`") from error
        except HfHubHTTPError as error:
            raise UserError(
                f"push_to_hub ({self.repo}): the hub refused ({str(error).strip()}); check the name and that your "
                "token may write there"
            ) from error
        except _UNREACHABLE as error:
            raise UserError(
                f"push_to_hub ({self.repo}): {hub.endpoint} cannot be reached ({error}); the export lies in "
                f"{self.folder}"
            ) from error
        return str(commit.commit_url)


def check_repo(repo: str, form: str) -> None:
    """Refuse a name that is none, and a format that hubs do not read, before anything is written.

    Raises:
        UserError: one of both.
    """
    if form not in FORMATS:
        raise UserError(
            f"push_to_hub: hubs do not read --format {form}; choose one of {', '.join(FORMATS)}, which "
            "datasets.load_dataset reads as they are"
        )
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"push_to_hub ({repo}) is no name of a repository: {error}") from error
    if repo.count("/") != 1:
        raise UserError(f"push_to_hub ({repo}) must have the form user/name")


def prepare(distilled: DistilledSet, folder: Path, repo: str, form: str, private: bool) -> Upload:
    """Lay the card beside the exported files.

    Raises:
        UserError: the folder cannot be written.
    """
    with atomic_file(folder / CARD) as beside:
        beside.write_text(make_card(distilled, repo, form), encoding="utf-8")
    return Upload(folder, repo, private)
