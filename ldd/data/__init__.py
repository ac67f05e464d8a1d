"""Real data: where images come from, which of them are kept, and how they reach a model."""

from ldd.runtime.lazy import attach

# Importing a set reads class tables and pictures, and has no use for a trainer's data.
__all__, __getattr__ = attach(__name__, __file__)
