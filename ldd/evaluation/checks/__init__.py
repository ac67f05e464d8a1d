"""Checks on the images of a set: copies of real ones, diversity and coverage, distance of features, confusion."""

from ldd.evaluation.checks.confusion import Confusion, confusions
from ldd.evaluation.checks.neighbours import Neighbours, by_pixels, nearest_real
from ldd.evaluation.checks.spread import Spread, frechet_distance, spread_of

FOLDER = "checks"
"""Folder of the results, in a run's or beside a set."""

JSON_NAME, NEIGHBOURS_NAME, CONFUSION_NAME = "checks.json", "neighbours.png", "confusion.png"

__all__ = (
    "CONFUSION_NAME",
    "FOLDER",
    "JSON_NAME",
    "NEIGHBOURS_NAME",
    "Confusion",
    "Neighbours",
    "Spread",
    "by_pixels",
    "confusions",
    "frechet_distance",
    "nearest_real",
    "spread_of",
)
