"""Distilled sets that other programs made: their files read, their class order and value range verified."""

from ldd.importers.classes import RawSet, agreed_classes, stated_classes
from ldd.importers.folder import classes_by_name, read_folder, table_inside
from ldd.importers.normalisation import KNOWN, undo_normalisation
from ldd.importers.pt import read_pt

__all__ = [
    "KNOWN",
    "RawSet",
    "agreed_classes",
    "classes_by_name",
    "read_folder",
    "read_pt",
    "stated_classes",
    "table_inside",
    "undo_normalisation",
]
