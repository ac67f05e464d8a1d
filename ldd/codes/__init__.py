"""Synthetic codes: what is optimised instead of pixels."""

from ldd.codes.base import CodeBatch, Codes, CodesFactory
from ldd.codes.gaussian import GaussianCodes
from ldd.codes.point import PointCodes
from ldd.codes.stored import stored_codes

__all__ = ("CodeBatch", "Codes", "CodesFactory", "GaussianCodes", "PointCodes", "stored_codes")
