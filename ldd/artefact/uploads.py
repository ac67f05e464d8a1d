"""Codes without images: in which precisions they are sent, and how a folder of them is told from others."""

from pathlib import Path
from typing import Literal

Precision = Literal["float32", "bfloat16", "uint8"]
"""How numbers are sent: as they are, as bfloat16, or in 256 levels between the least and the largest of each row.

A row is what one code has of a tensor, or the first axis of a tensor of the decoder.
"""

FACTS = "codes.json"
"""What else the codes need: classes, normalisation, the prior by its name and hash; a manifest of few fields."""


def is_upload(folder: Path) -> bool:
    """Tell whether a folder holds what `ldd.distiller.uploads.write_upload` writes."""
    return (folder / FACTS).is_file()
