"""Lightning callbacks: experts, evaluation, artefact, pictures, checkpoints, metrics."""

from ldd.callbacks.checkpoint import LastCheckpoints
from ldd.callbacks.cross_architecture import CrossArchitecture
from ldd.callbacks.experts import RecordExperts
from ldd.callbacks.export import Export
from ldd.callbacks.metrics import Metrics
from ldd.callbacks.preview import Preview

__all__ = ("CrossArchitecture", "Export", "LastCheckpoints", "Metrics", "Preview", "RecordExperts")
