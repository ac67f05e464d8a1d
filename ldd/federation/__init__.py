"""Federated distillation: disjoint sub-tasks, distilled independently and merged (D3, arXiv 2403.00999)."""

from ldd.federation.merging import merge
from ldd.federation.partition import ClassPartition

__all__ = ("ClassPartition", "merge")
