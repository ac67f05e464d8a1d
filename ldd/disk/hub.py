"""Repositories of the Hugging Face hub: how they are named, what is fetched of them, and how a folder is uploaded.

What comes from a hub was written by anybody: files are fetched by name, none is run, and pickles are never asked for.
"""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ldd.disk.files import atomic_folder
from ldd.disk.locks import locked
from ldd.errors import UserError, in_a_line, listed

if TYPE_CHECKING:  # importing the library takes a while
    from huggingface_hub import HfApi

SCHEME = "hf://"
Kind = Literal["dataset", "model"]
"""Of a repository: sets lie in the one, priors in the other."""

_WORDS: dict[Kind, str] = {"dataset": "data set", "model": "model"}
_MOST_FILES = 10_000


class Address(NamedTuple):
    """`hf://user/name[@revision]`: a repository, and a branch, tag or commit of it; None is its main branch."""

    repo: str
    revision: str | None

    def __str__(self) -> str:
        return SCHEME + self.repo + (f"@{self.revision}" if self.revision else "")


def is_address(name: object) -> bool:
    """Tell whether `name` begins as an address does; `Path` has turned two slashes into one."""
    return str(name).startswith("hf:/")


def parse_address(name: str, argument: str) -> Address:
    """Return the address; raise UserError, which names the argument, where it has another form."""
    found = re.fullmatch(r"hf://?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([A-Za-z0-9][\w./-]*))?", name)
    if found is None or ".." in name:
        raise UserError(
            f"{argument}={name!r} is not an address on the hub; its form is hf://user/name, or hf://user/name@revision "
            "for a branch, a tag or a commit"
        )
    return Address(found[1], found[2])


def fetch(name: str, kind: Kind, patterns: Sequence[str], argument: str, *, needed: bool = True) -> Path:
    """Return the local folder with the files of a repository that match one of the patterns.

    The library keeps them in its cache (`HF_HOME`), from where they are taken when the hub cannot be reached.

    Args:
        name: address of the repository.
        kind: what it must be.
        patterns: of paths in it.
        argument: that has the value `name`, for messages.
        needed: refuse a repository in which nothing matches.

    Raises:
        UserError: another form of address, no such repository or revision, one of the other kind or with too much in
            it, or a hub that cannot be reached while the files are not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    address = parse_address(name, argument)
    place: dict[str, Any] = {"repo_id": address.repo, "repo_type": kind, "revision": address.revision}
    try:
        info: Any = _hub().repo_info(**place, files_metadata=True)
        _check_files(address, argument, info.siblings or [], patterns, needed=needed)
        return Path(snapshot_download(**place, allow_patterns=[*patterns], endpoint=_endpoint()))
    except HfHubHTTPError as error:
        raise UserError(f"{argument}={str(address)!r}: {_refused(address, kind, error)}") from error
    except _unreachable() as error:
        with suppress(LocalEntryNotFoundError):
            return Path(snapshot_download(**place, allow_patterns=[*patterns], local_files_only=True))
        download = f"hf download {address.repo}" + " --repo-type dataset" * (kind == "dataset")
        raise UserError(
            f"{argument}={str(address)!r}: the hub cannot be reached ({in_a_line(error)}), and the cache has no copy; "
            f"fetch it where there is a network (`{download}`) and give the local folder"
        ) from error


def _check_files(
    address: Address, argument: str, files: Sequence[Any], patterns: Sequence[str], *, needed: bool
) -> None:
    """Raise unless what would be fetched fits on the disk, and anything would be where it is `needed`."""
    from huggingface_hub import constants

    wanted = [file for file in files if any(fnmatch(file.rfilename, pattern) for pattern in patterns)]
    if needed and not wanted:
        names = sorted(file.rfilename for file in files)
        raise UserError(
            f"{argument}={str(address)!r} holds no {patterns[0]}, which is needed, but {listed(names) or 'nothing'}; "
            "nothing of it was fetched: check the address"
        )
    size, cache = sum(file.size or 0 for file in wanted), Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    if size > free or len(wanted) > _MOST_FILES:
        raise UserError(
            f"{argument}={str(address)!r}: {len(wanted)} files of {size / 2**30:,.1f} GiB would be fetched to {cache}, "
            f"where {free / 2**30:,.1f} GiB are free (and at most {_MOST_FILES} files are taken); nothing was fetched: "
            "make room, or move the cache with HF_HOME"
        )


def _refused(address: Address, kind: Kind, error: Exception) -> str:
    """Return what a hub has answered, and the cure."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, RevisionNotFoundError):
        return (
            f"the repository has no revision {address.revision!r}; its page lists branches, tags and commits"
        )
    if isinstance(error, GatedRepoError):
        return "it is gated: accept its terms on its page and log in (`hf auth login`)"
    if isinstance(error, RepositoryNotFoundError):
        other: Kind = "model" if kind == "dataset" else "dataset"
        with suppress(Exception):  # whatever is said of the other kind, there is none of this one
            _hub().repo_info(address.repo, repo_type=other)
            return (
                f"it is a {_WORDS[other]}'s repository, and a {_WORDS[kind]}'s is needed; check the address"
            )
        return (
            f"no such {_WORDS[kind]} on the hub; check the name, or log in if it is private (`hf auth login`)"
        )
    return f"the hub refused ({in_a_line(error)}); try again later"


def plain_copy(snapshot: Path, name: str, argument: str) -> Path:
    """Return a folder with the files of a snapshot of `fetch` as themselves, where the library's cache has links."""
    from huggingface_hub import cached_assets_path

    folder = f"{parse_address(name, argument).repo.replace('/', '--')}@{snapshot.name[:12]}"
    target = cached_assets_path("latentdd", "sets") / folder
    with locked(target.with_name(f".{folder}.lock"), lambda holder: None):
        files = [path.relative_to(snapshot) for path in snapshot.rglob("*") if path.is_file()]
        if not all((target / file).is_file() for file in files):
            with atomic_folder(target) as beside:
                for file in files:
                    (beside / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(snapshot / file, beside / file)
    return target


@dataclass(frozen=True)
class Upload:
    """A folder on its way to a hub.

    Attributes:
        folder: what is uploaded.
        repo: `user/name`.
        private: hide a repository that is made for it from others.
        kind: of the repository.
        replaced: patterns of files of earlier uploads that go where this one has none of their name.
        argument: that names the repository, for messages.
        verb: that uploads.
    """

    folder: Path
    repo: str
    private: bool
    kind: Kind = "dataset"
    replaced: tuple[str, ...] = ()
    argument: str = "push_to_hub"
    verb: str = "export"

    @property
    def files(self) -> dict[str, int]:
        """Path in the repository -> bytes."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in found}

    def send(self) -> str:
        """Make the repository if it is missing, and upload all files as one commit.

        The address of the hub (`HF_ENDPOINT`) and the token (`HF_TOKEN`, `hf auth login`) are the library's own.

        Returns:
            URL of the commit.

        Raises:
            UserError: no token, no permission, or a hub that cannot be reached or refuses.
        """
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

        hub, what = _hub(), f"{self.argument} ({self.repo})"
        try:
            hub.create_repo(self.repo, repo_type=self.kind, private=self.private, exist_ok=True)
            commit = hub.upload_folder(
                repo_id=self.repo,
                folder_path=self.folder,
                repo_type=self.kind,
                delete_patterns=[*self.replaced] or None,
                commit_message=f"{len(self.files)} files by latentdd {self.verb}",
            )
        except LocalTokenNotFoundError as error:
            raise UserError(f"{what}: no token; log in with `hf auth login`") from error
        except HfHubHTTPError as error:
            raise UserError(
                f"{what}: the hub refused ({str(error).strip()}); check the name and that your token may write there"
            ) from error
        except _unreachable() as error:
            raise UserError(
                f"{what}: {hub.endpoint} cannot be reached ({error}); nothing was uploaded, try again later"
            ) from error
        return str(commit.commit_url)


def check_repo(repo: str, argument: str) -> None:
    """Raise UserError unless `repo` can name a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, not in its __all__

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{argument} ({repo}) cannot name a repository: {error}") from error
    if repo.count("/") != 1:
        raise UserError(f"{argument} ({repo}) must have the form user/name")


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


def _hub() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint())


def _unreachable() -> Any:  # noqa: ANN401 - a tuple of exceptions
    """Return what the library raises without a network: its error derives from its transport's, which differs."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, OSError)
