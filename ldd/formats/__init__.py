"""Exports of a distilled set to files that other programs read; one format a file."""

from typing import Literal

from ldd.formats.base import Writer
from ldd.formats.imagefolder import write_imagefolder
from ldd.formats.pt import write_pt

FormatName = Literal["imagefolder", "pt"]
WRITERS: dict[FormatName, Writer] = {"imagefolder": write_imagefolder, "pt": write_pt}
"""The choices of `latentdd export --format`. Another format is a file here, a line here and a name above."""

__all__ = ["WRITERS", "FormatName", "Writer", "write_imagefolder", "write_pt"]
