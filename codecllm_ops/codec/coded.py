"""A coded matrix in memory: four tensors and the parsed head; slicing, concatenation, checking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from ..format import scales
from ..format.errors import CorruptStreamError, typed
from ..format.head import Head
from ..format.layout_word import CODINGS, Layout
from . import codings
from .assemble import assemble, bytes_of, crc32
from .operand import Operand

# In files `<module>.weight`, `_raw`, `_index`, `_head`; what is in them: docs/format.md, section 1.
PARTS = {
    "stream": torch.uint8,
    "raw": torch.uint8,
    "index": torch.int32,
    "head": torch.uint8,
}


@contextmanager
def lasting() -> Iterator[None]:
    """Tensors made in here outlive the call: they belong to no transform of torch.func, and are
    no inference tensors, which autograd could not save.
    """
    with torch.inference_mode(False), temporarily_clear_interpreter_stack():
        yield


@dataclass(frozen=True, eq=False, repr=False)
class CodedMatrix:
    """stream, raw, head: uint8 [*]; index: int32 [*]; all on one device.

    Equal are two whose tensors are: the same matrix may be coded in different ways.
    """

    stream: torch.Tensor
    raw: torch.Tensor
    index: torch.Tensor
    head: torch.Tensor

    @staticmethod
    def build(head: Head, stream, raw, index, device=None) -> CodedMatrix:
        """From a head without checksums and three buffers or tensors."""
        return CodedMatrix(*assemble(head, stream, raw, index, device))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CodedMatrix):
            return NotImplemented
        pairs = zip(self.tensors(), other.tensors(), strict=True)
        return self is other or all(a.device == b.device and torch.equal(a, b) for a, b in pairs)

    def __hash__(self) -> int:
        return hash(tuple(t.numel() for t in self.tensors()))

    def __repr__(self) -> str:
        if self.head.is_meta:
            return f"CodedMatrix({self.nbytes} bytes, device=meta)"
        info = self.info
        how = "stored" if info.stored else f"{info.coding}, tile_cols={info.tile_cols}"
        return (
            f"CodedMatrix({info.fmt.name} [{info.rows}, {info.cols}], {how}, {self.nbytes} bytes, "
            f"device={self.device})"
        )

    @cached_property
    def info(self) -> Head:
        """The parsed head. Raises CorruptStreamError or UnsupportedFormatError."""
        with lasting():
            return Head.parse(bytes(bytes_of(self.head)))

    @property
    def shape(self) -> tuple[int, int]:
        return self.info.rows, self.info.cols

    @property
    def device(self) -> torch.device:
        return self.stream.device

    @property
    def nbytes(self) -> int:
        """All that is stored, in bytes."""
        return sum(t.numel() * t.element_size() for t in self.tensors())

    @property
    def coding(self) -> str:
        """What the tensors hold: "rans", "fixed" or "stored"."""
        return self.info.coding

    @property
    def _room(self) -> codings.Coding:
        return codings.room(self.info.coding)

    @cached_property
    def layout(self) -> int:
        return pack_layout(self.info)

    @cached_property
    def operand(self) -> Operand:
        """The arguments of the ops.

        Raises:
            CorruptStreamError: the index has another size than the head says.
        """
        info = self.info
        if self.index.numel() != info.index_ints:
            raise CorruptStreamError(
                f"index: {self.index.numel()} values, the head says {info.index_ints}"
            )
        with lasting():
            index = self.index.view(info.index_shape)
        return Operand(
            self.stream, self.raw, index, self.table, self.scale, info.rows, info.cols, self.layout
        )

    @cached_property
    def table(self) -> torch.Tensor:
        """What kernels keep beside the streams, int32 [segments, *]; built from the head."""
        with lasting():
            return torch.from_numpy(self._room.runtime_table(self.info)).to(self.device)

    @cached_property
    def scale(self) -> torch.Tensor | None:
        """float32 [1] or [rows], or None."""
        if self.info.scale is None:
            return None
        with lasting():
            return torch.from_numpy(self.info.scale).to(self.device)

    def prepare(self) -> CodedMatrix:
        """Builds now what the first use builds otherwise: torch.compile cannot while it traces."""
        _ = self.operand
        return self

    @property
    def prepared(self) -> bool:
        return "operand" in self.__dict__

    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.stream, self.raw, self.index, self.head

    def to(self, where: torch.device | str, **options: Any) -> CodedMatrix:
        """The same matrix on another device, or in another coding ("rans", "fixed", "stored").

        Converting is lossless and deterministic: "rans" gives the bytes that encode() gives for
        the decoded weight. To "fixed" no dense copy exists on the way. The matrix itself where
        nothing changes.

        Args:
            options: for "rans" those of encode(), for "fixed" tile_cols.

        Raises:
            ValueError: options for anything else.
            UnsupportedFormatError: "fixed" for another weight format than bf16.
            CorruptStreamError: the matrix does not decode.
        """
        if where in codings.NAMES:
            return self if where == self.coding and not options else self._converted(where, options)
        if options:
            raise ValueError(f"to({where!r}): {', '.join(options)} belong to a coding")
        return self._moved(where)

    def _converted(self, coding: str, options: dict[str, Any]) -> CodedMatrix:
        with lasting():
            try:
                converted = CodedMatrix(*codings.room(coding).convert(self, **options))
            except RuntimeError as error:
                raise typed(error) from None
        return converted.prepare() if self.prepared else converted

    def _moved(self, device: torch.device | str) -> CodedMatrix:
        with lasting():
            moved = CodedMatrix(*(t.to(device) for t in self.tensors()))
        return moved.prepare() if self.prepared and not moved.head.is_meta else moved

    def check(self, checksums: bool = True) -> CodedMatrix:
        """Raises CorruptStreamError, naming the field, unless kernels may run on this matrix.

        Args:
            checksums: also read everything and compare CRC-32s.
        """
        for name, t in zip(PARTS, self.tensors(), strict=True):
            if t.dtype != PARTS[name] or t.dim() != 1 or not t.is_contiguous():
                raise CorruptStreamError(
                    f"{name}: {t.dtype} {list(t.shape)}, not a contiguous 1-D {PARTS[name]}"
                )
        info = self.info
        sizes = (info.stream_bytes, info.raw_bytes, info.index_ints)
        for name, t, size in zip(PARTS, self.tensors(), sizes, strict=False):
            if t.numel() != size:
                raise CorruptStreamError(f"{name}: {t.numel()} elements, the head says {size}")
        if checksums:
            expected = (info.crc_stream, info.crc_raw, info.crc_index)
            for name, t, crc in zip(PARTS, self.tensors(), expected, strict=False):
                found = crc32(t)
                if found != crc:
                    raise CorruptStreamError(
                        f"{name}: CRC-32 {found:#010x}, the head says {crc:#010x}"
                    )
        self._room.check_contents(self)
        return self

    def slice(self, rows: slice = slice(None), cols: slice = slice(None)) -> CodedMatrix:
        """Copies a part without decoding (tensor parallel ranks, experts).

        Args:
            rows, cols: step 1. Borders must be tile borders: rows at multiples of 16 within their
                segment, cols at multiples of tile_cols; or the matrix's end. A stored matrix may
                be cut anywhere.

        Raises:
            ValueError: a border inside a tile.
        """
        info = self.info
        rows, cols = _range(rows, info.rows, "rows"), _range(cols, info.cols, "cols")
        kind = scales.per_row(info.scale_kind, info.rows)
        head = replace(
            info,
            rows=rows.stop - rows.start,
            cols=cols.stop - cols.start,
            scale=scales.cut(info.scale, kind, rows),
            scale_kind=kind,
        )
        return CodedMatrix.build(*self._room.cut(self, head, rows, cols), self.device)

    @staticmethod
    def concat_rows(parts: list[CodedMatrix]) -> CodedMatrix:
        """Stacks matrices of equal width along rows; every part keeps its table and window.

        Parts that shall be stacked later are best encoded with one tile_cols and with
        allow_stored=False: stored parts stack with stored ones only.

        Raises:
            ValueError: parts differ in format, cols, coding, tile_cols, scale_bits, predictor or
                kind of scale; some but not all are stored; too many segments together.
        """
        if not parts:
            raise ValueError("concat_rows: no parts")
        first, room = parts[0].info, parts[0]._room
        kinds = [scales.per_row(p.info.scale_kind, p.info.rows) for p in parts]
        for key in ("fmt", "cols", "coding", *room.concat_keys):
            _must_be_equal(key, [getattr(p.info, key) for p in parts])
        _must_be_equal("scale_kind", kinds)
        head = replace(
            first,
            rows=sum(p.info.rows for p in parts),
            scale=scales.join(kinds[0], [p.info.scale for p in parts]),
            scale_kind=kinds[0],
        )
        return CodedMatrix.build(*room.join(parts, head), parts[0].device)


def _must_be_equal(key: str, values: list) -> None:
    if len(set(values)) > 1:
        shown = ", ".join(map(str, values))
        remedy = "; encode all with allow_stored=False" if key == "coding" else ""
        raise ValueError(f"concat_rows: parts differ in {key}: {shown}{remedy}")


def _range(s: slice, size: int, name: str) -> slice:
    start, stop, step = s.indices(size)
    if step != 1:
        raise ValueError(f"slice: {name} with step {step}")
    return slice(start, max(start, stop))


def pack_layout(head: Head) -> int:
    """The op argument `layout`."""
    return Layout(
        head.fmt.id,
        CODINGS.index(head.coding),
        head.scale_bits,
        head.predictor,
        head.scale_kind,
        head.tile_cols,
    ).pack()
