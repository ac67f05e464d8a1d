"""Evaluation: students trained on a set and on its baselines by a protocol, soft labels, and the report."""

from ldd.runtime.lazy import attach

# A worker that trains students needs neither the data of the baselines nor the report.
__all__, __getattr__ = attach(__name__, __file__)
