"""Distilled sets that other programs made: their files read, their class order and value range verified."""

from ldd.importers.classes import shown
from ldd.importers.normalisation import KNOWN, undo_normalisation
from ldd.importers.pt import read_pt
from ldd.importers.reading import RealData, read_set

__all__ = ["KNOWN", "RealData", "read_pt", "read_set", "shown", "undo_normalisation"]
