"""Lightning callbacks: experts, evaluation, artefact, pictures, checkpoints."""

from ldd.callbacks.checkpoint import LastCheckpoints
from ldd.callbacks.cross_architecture import CrossArchitecture
from ldd.callbacks.experts import RecordExperts
from ldd.callbacks.export import Export
from ldd.callbacks.preview import Preview

__all__ = ("CrossArchitecture", "Export", "LastCheckpoints", "Preview", "RecordExperts")
