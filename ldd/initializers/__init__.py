"""Initialisers: where codes start."""

from ldd.initializers.base import Initializer
from ldd.initializers.real import GaussianLatents, RealEncodings

__all__ = ("GaussianLatents", "Initializer", "RealEncodings")
