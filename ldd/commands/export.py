"""`latentdd export`: a distilled set as files that other programs read, here or on a data-set hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ldd.artefact.exporters import WRITERS, FormatName
from ldd.artefact.exporters.hub import ENDINGS, check_form, prepare
from ldd.artefact.set import DistilledSet
from ldd.artefact.uploads import Precision
from ldd.errors import UserError
from ldd.runs.ending import Ending
from ldd.runs.verb import run_function

Form = Literal[FormatName, "codes"]
"""One literal of all, so that a mistyped one is told its neighbour."""


def export(
    path: str,
    format: Form,
    out: str,
    overwrite: bool = False,
    precision: Precision | None = None,
    push_to_hub: str | None = None,
    dry_run: bool = True,
    private: bool = True,
) -> Ending:
    """Convert a distilled set; its hashes are checked first.

    Args:
        path: folder of the set or of the run that made it, embedded:NAME, hf://user/name, or a URL in a store.
        format: imagefolder (a folder of PNG files per class and classes.json), pt (for torch.load), parquet (for
            datasets.load_dataset), webdataset (tar files), ddranking (tensors for the scores of DD-Ranking 0.2.0),
            rethinkdc (Parquet files with the columns of RethinkDC) or codes (without images, a few hundred bytes each,
            which `latentdd import` decodes where the prior is).
        out: folder to write, or for pt a file whose name ends in .pt.
        overwrite: replace an earlier export there.
        precision: of codes alone: float32, bfloat16 (null) or uint8, in 256 levels for each code.
        push_to_hub: upload the export to this data-set repository (user/name) of the Hugging Face hub, with a card
            made from the manifest; parquet and webdataset only.
        dry_run: with push_to_hub: write the export and its card, say what would be uploaded, and upload nothing.
        private: with push_to_hub: a repository that does not exist yet is made a private one.
    """
    if format == "codes":
        return _export_codes(path, out, overwrite, precision, push_to_hub)
    if precision is not None:
        raise UserError(f"precision ({precision}) is of codes alone; leave it out, or give --format codes")
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


def _export_codes(
    path: str, out: str, overwrite: bool, precision: Precision | None, push_to_hub: str | None
) -> Ending:
    if push_to_hub is not None:
        raise UserError(
            "push_to_hub is for images that others load (parquet, webdataset); leave it out for codes"
        )
    from ldd.distiller.uploads import write_upload  # diffusers, which no other form needs

    distilled = DistilledSet.load(path)
    sent = write_upload(distilled, Path(out), precision or "bfloat16", overwrite)
    print(
        f"exported {len(distilled.images)} codes of {distilled.num_classes} classes: {sent.bytes:,} bytes; decoded, a "
        f"pixel is {sent.mean_error:.3f} of 255 off on average, {sent.largest_error} at most"
    )
    return Ending((sent.folder,), ("import", out, "--out", f"{out}_read"))


def main(verb: str, arguments: Sequence[str]) -> Ending:
    """Run the verb."""
    hub = "--push-to-hub"  # as the tools of the hub spell it
    spelt = [a.replace(hub, "--push_to_hub", 1) if a.startswith(hub) else a for a in arguments]
    return run_function(export, verb, spelt)
