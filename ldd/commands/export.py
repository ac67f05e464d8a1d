"""`latentdd export`: a distilled set as files that other programs read, here or on a data-set hub."""

from collections.abc import Sequence
from pathlib import Path

from ldd.artefact.exporters import WRITERS, FormatName
from ldd.artefact.exporters.hub import ENDINGS, check_form, prepare
from ldd.artefact.set import DistilledSet
from ldd.errors import UserError
from ldd.runs.ending import Ending
from ldd.runs.verb import run_function


def export(
    path: str,
    format: FormatName,
    out: str,
    overwrite: bool = False,
    push_to_hub: str | None = None,
    dry_run: bool = True,
    private: bool = True,
) -> Ending:
    """Convert a distilled set; its hashes are checked first.

    Args:
        path: folder of the set or of the run that made it, embedded:NAME, hf://user/name, or a URL in a store.
        format: imagefolder (a folder of PNG files per class and classes.json), pt (for torch.load), parquet (for
            datasets.load_dataset), webdataset (tar files), ddranking (tensors for the scores of DD-Ranking 0.2.0) or
            rethinkdc (Parquet files with the columns of RethinkDC).
        out: folder to write, or for pt a file whose name ends in .pt.
        overwrite: replace an earlier export there.
        push_to_hub: upload the export to this data-set repository (user/name) of the Hugging Face hub, with a card
            made from the manifest; parquet and webdataset only.
        dry_run: with push_to_hub: write the export and its card, say what would be uploaded, and upload nothing.
        private: with push_to_hub: a repository that does not exist yet is made a private one.
    """
    if push_to_hub is not None:
        check_form(push_to_hub, format)
    elif not dry_run or not private:
        raise UserError("dry_run and private are about an upload; name its repository with --push_to_hub")
    distilled = DistilledSet.load(path)
    written = WRITERS[format](distilled, Path(out), overwrite)
    print(f"exported {len(distilled.images)} images of {distilled.num_classes} classes")
    again = ("export", path, "--format", format, "--out", out, "--overwrite", "--push_to_hub")
    if push_to_hub is None:
        read = ("import", written, "--out", f"{out.removesuffix('.pt')}_read")
        return Ending((written,), (*again, "USER/NAME") if format in ENDINGS else read)
    upload = prepare(distilled, written, push_to_hub, format, private)
    if not dry_run:
        return Ending((written, upload.send()), ("inspect", path))
    for name, size in upload.files.items():
        print(f"would upload {name} ({size:,} bytes)")
    print(f"nothing was uploaded: read {written / 'README.md'} first")
    return Ending((written,), (*again, push_to_hub, "--dry_run", "false"))


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    hub = "--push-to-hub"  # as the tools of the hub spell it
    spelt = [a.replace(hub, "--push_to_hub", 1) if a.startswith(hub) else a for a in arguments]
    return run_function(export, verb, spelt)
