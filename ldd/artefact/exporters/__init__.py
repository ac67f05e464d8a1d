"""Exports of a distilled set to files that other programs read; one format a file."""

from typing import Literal

from ldd.artefact.exporters.base import Writer
from ldd.artefact.exporters.ddranking import write_ddranking
from ldd.artefact.exporters.imagefolder import write_imagefolder
from ldd.artefact.exporters.parquet import write_parquet
from ldd.artefact.exporters.pt import write_pt
from ldd.artefact.exporters.rethinkdc import write_rethinkdc
from ldd.artefact.exporters.webdataset import write_webdataset

FormatName = Literal["imagefolder", "pt", "parquet", "webdataset", "ddranking", "rethinkdc"]
WRITERS: dict[FormatName, Writer] = {
    "imagefolder": write_imagefolder,
    "pt": write_pt,
    "parquet": write_parquet,
    "webdataset": write_webdataset,
    "ddranking": write_ddranking,
    "rethinkdc": write_rethinkdc,
}
"""The choices of `latentdd export --format`. Another format is a file here, a line here and a name above."""

__all__ = [
    "WRITERS",
    "FormatName",
    "Writer",
    "write_ddranking",
    "write_imagefolder",
    "write_parquet",
    "write_pt",
    "write_rethinkdc",
    "write_webdataset",
]
