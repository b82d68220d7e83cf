"""Weight formats as data (docs/format.md, section 2). Adding one is adding one entry here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from .errors import UnsupportedFormatError


@dataclass(frozen=True)
class Plane:
    """Raw bits that pack 16 / bits pair registers into one 32-bit container."""

    mask: int  # 16 bits, inside a half
    bits: int  # popcount(mask), a power of two
    low_half: bool = False  # of a 32-bit word: the plane holds its low half


@dataclass(frozen=True)
class Float:
    """Words are IEEE-like numbers: sign, exponent, mantissa."""

    exponent: int
    mantissa: int
    has_inf: bool = True  # the highest exponent is infinity and NaN; else all ones alone are NaN


@dataclass(frozen=True)
class Integer:
    """Words are integers of a step, which is the matrix's scale."""


@dataclass(frozen=True)
class WeightFormat:
    """A word of which `coded_bits` from bit `coded_shift` of its (high) half on are coded.

    Kernels distinguish formats by these numbers and by their kind, never by id.
    """

    id: int
    name: str
    dtype: torch.dtype
    word_bits: int
    coded_shift: int
    coded_bits: int
    flip: int = 0
    kind: Float | Integer = Integer()

    @property
    def scaled(self) -> bool:
        """Whether a matrix may have scales."""
        return isinstance(self.kind, Integer)

    @property
    def word_bytes(self) -> int:
        return self.word_bits // 8

    @property
    def coded_mask(self) -> int:
        return ((1 << self.coded_bits) - 1) << self.coded_shift

    @cached_property
    def planes(self) -> tuple[Plane, ...]:
        half = (1 << min(self.word_bits, 16)) - 1
        planes = list(_split(half & ~self.coded_mask))
        if self.word_bits == 32:
            planes.append(Plane(0xFFFF, 16, low_half=True))
        return tuple(planes)

    @cached_property
    def plane_bits(self) -> tuple[int, ...]:
        """Bits that each raw plane has of a half."""
        return tuple(p.bits for p in self.planes)


def _split(raw: int):
    """Greedy split of the raw bits into planes whose rotations tile a half (section 5)."""
    for bits in (16, 8, 4, 2, 1):
        while True:
            lowest = {}
            for position in range(15, -1, -1):
                if raw >> position & 1:
                    lowest[position % bits] = position
            if len(lowest) < bits:
                break
            mask = sum(1 << position for position in lowest.values())
            yield Plane(mask, bits)
            raw &= ~mask


FORMATS: dict[str, WeightFormat] = {
    f.name: f
    for f in (
        WeightFormat(1, "bf16", torch.bfloat16, 16, coded_shift=7, coded_bits=8, kind=Float(8, 7)),
        WeightFormat(2, "fp16", torch.float16, 16, coded_shift=10, coded_bits=5, kind=Float(5, 10)),
        WeightFormat(3, "fp32", torch.float32, 32, coded_shift=7, coded_bits=8, kind=Float(8, 23)),
        WeightFormat(
            4,
            "fp8_e4m3",
            torch.float8_e4m3fn,
            8,
            coded_shift=3,
            coded_bits=4,
            kind=Float(4, 3, has_inf=False),
        ),
        WeightFormat(
            5, "fp8_e5m2", torch.float8_e5m2, 8, coded_shift=2, coded_bits=5, kind=Float(5, 2)
        ),
        WeightFormat(6, "int8", torch.int8, 8, coded_shift=4, coded_bits=4, flip=0x80),
    )
}


def by_id(format_id: int) -> WeightFormat:
    for f in FORMATS.values():
        if f.id == format_id:
            return f
    known = ", ".join(f"{f.id} ({f.name})" for f in FORMATS.values())
    raise UnsupportedFormatError(f"weight format id {format_id} is unknown; known: {known}")


def by_dtype(dtype: torch.dtype) -> WeightFormat:
    """The format that a dtype has unless another one is asked for: the first of the table."""
    for f in FORMATS.values():
        if f.dtype == dtype:
            return f
    known = ", ".join(str(f.dtype) for f in FORMATS.values())
    raise UnsupportedFormatError(f"no weight format codes {dtype}; coded dtypes: {known}")


def choose(name: str | None, dtype: torch.dtype) -> WeightFormat:
    """The format called `name`, or that of the dtype.

    Raises:
        UnsupportedFormatError: no such format, or its words are of another dtype.
    """
    if name is None:
        return by_dtype(dtype)
    found = FORMATS.get(name)
    if found is None:
        raise UnsupportedFormatError(f"weight format {name!r} is unknown: {', '.join(FORMATS)}")
    if found.dtype != dtype:
        raise UnsupportedFormatError(f"weight format {name} codes {found.dtype}, not {dtype}")
    return found
