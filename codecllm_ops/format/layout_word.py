"""What kernels must know on the host, in one integer: the op argument `layout`.

Not on the wire. An op's schema takes integers, not structures, and one integer is one guard of
torch.compile. What differs between matrices of one shape (sizes of streams, the width of an index
record) is therefore not in it: kernels take it from the tensors' shapes.

`FIELDS` is the only definition in Python; csrc/core/layout.h is the one in C++, and
tests/format/test_constants.py compares them.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from .errors import CorruptStreamError
from .scales import SCALE_KINDS
from .weight_formats import WeightFormat, by_id

FIELDS = (  # name, first bit, bits
    ("format", 0, 8),
    ("coding", 8, 2),
    ("scale_bits", 10, 4),
    ("predictor", 14, 1),
    ("scale_kind", 15, 2),
    ("tile_cols", 32, 16),
)
_KNOWN_BITS = sum((1 << bits) - 1 << first for _, first, bits in FIELDS)

CODINGS = ("rans", "stored", "fixed")  # by number


class Layout(NamedTuple):
    """The fields, unpacked."""

    format: int
    coding: int
    scale_bits: int
    predictor: int
    scale_kind: int
    tile_cols: int

    def pack(self) -> int:
        return sum(value << first for value, (_, first, _) in zip(self, FIELDS, strict=True))

    @staticmethod
    @functools.lru_cache(maxsize=1024)
    def unpack(word: int) -> Layout:
        """Raises CorruptStreamError for bits without a meaning."""
        found = Layout(*(word >> first & (1 << bits) - 1 for _, first, bits in FIELDS))
        if (
            word & ~_KNOWN_BITS
            or found.scale_kind not in SCALE_KINDS
            or found.coding >= len(CODINGS)
        ):
            raise CorruptStreamError(f"corrupt layout: {word:#x} has unknown bits")
        return found

    @property
    def fmt(self) -> WeightFormat:
        return by_id(self.format)

    @property
    def stored(self) -> bool:
        return CODINGS[self.coding] == "stored"


assert Layout._fields == tuple(name for name, _, _ in FIELDS)
