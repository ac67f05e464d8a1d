"""Runs of a trainer: their command line, their folder, and a recipe as other verbs read it."""
