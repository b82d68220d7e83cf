"""Coded matrices: what is common to all codings, and a room for each (docs/format.md)."""

from .coded import CodedMatrix
from .operand import Operand

__all__ = ["CodedMatrix", "Operand"]
