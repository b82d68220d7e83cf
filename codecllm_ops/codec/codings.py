"""Codings: what the tensors of a coded matrix hold. One room each, found by name.

To add one: a module or package with the functions of `Coding`, an entry in `_ROOMS`, its number in
format/layout_word.py, and a source in each backend (docs/architecture.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch

from ..format.head import Head
from . import fixed, rans, stored

if TYPE_CHECKING:
    from .coded import CodedMatrix


class Coding(Protocol):
    """What CodedMatrix asks of a room.

    Attributes:
        concat_keys: fields of the head that concatenated parts must share, besides format, cols,
            coding and kind of scale.
    """

    name: str
    concat_keys: tuple[str, ...]

    def runtime_table(self, head: Head) -> np.ndarray:
        """What kernels keep beside the streams: int32 [segments, *]."""

    def check_contents(self, coded: CodedMatrix) -> None:
        """What sizes and checksums do not tell. Raises CorruptStreamError."""

    def cut(self, coded: CodedMatrix, head: Head, rows: slice, cols: slice) -> tuple[Any, ...]:
        """Head, stream, raw and index of rows and columns (start, stop; step 1)."""

    def join(self, parts: list[CodedMatrix], head: Head) -> tuple[Any, ...]:
        """The same of parts below each other."""

    def convert(self, source: CodedMatrix, **options: Any) -> tuple[torch.Tensor, ...]:
        """The four tensors of a matrix, whatever it is coded in, in this coding."""


_ROOMS = {"rans": rans, "stored": stored, "fixed": fixed}
NAMES = tuple(_ROOMS)


def room(name: str) -> Coding:
    """The room of that coding."""
    return cast(Coding, _ROOMS[name])
