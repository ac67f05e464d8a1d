"""Checks on the images of a set: copies of real ones, diversity and coverage, distance of features, confusion."""

FOLDER = "checks"
"""Folder of the results, in a run's folder or next to a set."""

JSON_NAME, NEIGHBOURS_NAME, CONFUSION_NAME = "checks.json", "neighbours.png", "confusion.png"
