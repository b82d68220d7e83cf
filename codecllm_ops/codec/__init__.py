"""Coded matrices and the slow, complete reference codec (docs/format.md in plain Python)."""

from .coded import CodedMatrix
from .tables import plan_segment, runtime_table, slot_table

__all__ = ["CodedMatrix", "plan_segment", "runtime_table", "slot_table"]
