"""`latentdd prior push`: a prior's folder as a repository of a model hub."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ldd.disk.hub import SCHEME, Upload, check_repo
from ldd.priors.publishing import README, publish
from ldd.runs.ending import Ending
from ldd.runs.options import parse
from ldd.runs.parser import Parser


def push(prior: str, repo: str, private: bool = True, dry_run: bool = False) -> Ending:
    """Upload a prior's components and its card; nothing that only this machine knows is among them.

    Args:
        prior: its folder, or embedded:NAME.
        repo: user/name of the repository.
        private: a repository that does not exist yet is made a private one.
        dry_run: show files and card, and upload nothing.

    Raises:
        UserError: no whole prior there, or a hub that cannot be reached or refuses.
    """
    check_repo(repo, "repo")
    with tempfile.TemporaryDirectory() as folder:
        publish(prior, Path(folder), repo)
        upload = Upload(Path(folder), repo, private, kind="model", argument="repo", verb="prior push")
        if dry_run:
            print((Path(folder) / README).read_text(encoding="utf-8"))
            print("\n".join(f"would upload {name} ({size:,} bytes)" for name, size in upload.files.items()))
            print(f"nothing was uploaded: leave out --dry_run to upload to {repo}")
            return Ending(next=("prior", "push", prior, repo))
        made = upload.send()
    return Ending((made,), ("prior", "sample", f"{SCHEME}{repo}", "--out", "samples.png"))


def main(arguments: Sequence[str]) -> Ending:
    """Upload the prior and say where it is."""
    parser = Parser(
        prog="latentdd prior push",
        description="Upload a prior's components and its card to the Hugging Face hub, where hf://user/name names it.",
    )
    parser.add_argument("prior", type=str, help="Prior folder, or embedded:NAME.")
    parser.add_argument("repo", type=str, help="Repository, user/name.")
    parser.add_function_arguments(push, skip={"prior", "repo"}, as_positional=False)
    return push(**vars(parse(parser, arguments)))
