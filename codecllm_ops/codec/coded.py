"""A coded matrix in memory: four tensors and the parsed head; slicing, concatenation, checking."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from ..format.errors import CorruptStreamError
from ..format.head import MAX_SEGMENTS, ROW_SCALE, TENSOR_SCALE, Head
from ..format.layout import LANES, STREAM_ALIGN, STREAM_PAD, TILE_ROWS, ceil_div, record_ints
from ..format.layout_word import CODINGS, Layout
from .operand import Operand
from .tables import runtime_table

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


def _bytes(t: torch.Tensor) -> memoryview:
    if t.numel() == 0:
        return memoryview(b"")
    return memoryview(t.detach().cpu().contiguous().view(torch.uint8).numpy())


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
        parts = [_as_tensor(b, torch.uint8) for b in (stream, raw)]
        parts.append(_as_tensor(index, torch.int32))
        head = head.with_crcs(*(_bytes(p) for p in parts))
        packed = torch.frombuffer(bytearray(head.pack()), dtype=torch.uint8)
        return CodedMatrix(*(p.to(device) for p in (*parts, packed)))

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
        how = "stored" if info.stored else f"tile_cols={info.tile_cols}"
        return (
            f"CodedMatrix({info.fmt.name} [{info.rows}, {info.cols}], {how}, {self.nbytes} bytes, "
            f"device={self.device})"
        )

    @cached_property
    def info(self) -> Head:
        """The parsed head. Raises CorruptStreamError or UnsupportedFormatError."""
        with lasting():
            return Head.parse(bytes(_bytes(self.head)))

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
        """What the tensors hold: "rans" or "stored"."""
        return self.info.coding

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
        """Runtime slot tables, int32 [segments, 8 + 2^scale_bits]; built from the head."""
        with lasting():
            return torch.from_numpy(runtime_table(self.info)).to(self.device)

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

    def to(self, device) -> CodedMatrix:
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
                found = zlib.crc32(_bytes(t))
                if found != crc:
                    raise CorruptStreamError(
                        f"{name}: CRC-32 {found:#010x}, the head says {crc:#010x}"
                    )
        if not info.stored:
            self._check_index()
        return self

    def _check_index(self) -> None:
        info, grid = self.info, self.info.grid
        starts, lengths, segments = read_index(self.index.cpu().numpy(), info.len_bits)
        tiles = [ceil_div(s.rows, TILE_ROWS) * grid.col_tiles for s in info.segments]
        expected = np.repeat(np.arange(len(tiles)), tiles)
        if (segments != expected).any():
            tile = int(np.argmax(segments != expected))
            raise CorruptStreamError(f"index: tile {tile} names segment {segments[tile]}")
        ends = starts + 2 * lengths.sum(axis=1)
        bad = ends > info.stream_bytes - STREAM_PAD
        if bad.any():
            tile = int(np.argmax(bad))
            raise CorruptStreamError(
                f"index: tile {tile} ends at byte {ends[tile]} of {info.stream_bytes - STREAM_PAD}"
            )
        if (lengths < 2).any():
            raise CorruptStreamError("index: a lane has fewer than the two words of its state")

    def slice(self, rows: slice = slice(None), cols: slice = slice(None)) -> CodedMatrix:
        """Copies a part without decoding (tensor parallel ranks, experts).

        Args:
            rows, cols: step 1. Borders must be tile borders: rows at multiples of 16 within their
                segment, cols at multiples of tile_cols; or the matrix's end.

        Raises:
            ValueError: a border inside a tile, or a stored matrix cut along columns.
        """
        info, grid = _row_scaled(self.info), self.info.grid
        r0, r1 = _range(rows, info.rows, "rows")
        c0, c1 = _range(cols, info.cols, "cols")
        scale = info.scale
        if scale is not None and info.scale_kind == ROW_SCALE:
            scale = scale[r0:r1]
        if info.stored:
            width = info.cols * info.fmt.word_bytes
            words = self.stream.view(info.rows, width)
            b = info.fmt.word_bytes
            part = words[r0:r1, c0 * b : c1 * b].reshape(-1)
            head = replace(info, rows=r1 - r0, cols=c1 - c0, scale=scale)
            return CodedMatrix.build(head, part, self.raw, self.index, self.device)
        for border in (c0, c1):
            if border % info.tile_cols and border != info.cols:
                raise ValueError(
                    f"slice: column {border} is inside a tile; tile_cols is {info.tile_cols}"
                )
        tile_rows, segments = _cut_segments(info.segments, r0, r1)
        col_tiles = range(c0 // info.tile_cols, ceil_div(c1, info.tile_cols)) if c1 > c0 else ()
        tiles = np.array([[tr * grid.col_tiles + ct for ct in col_tiles] for tr in tile_rows])
        tiles = tiles.reshape(-1).astype(np.int64)
        head = replace(
            info, rows=r1 - r0, cols=c1 - c0, segments=tuple(s for s, _ in segments), scale=scale
        )
        raw = _raw_rows(self.raw, grid, tile_rows, col_tiles)
        stream, index = _gather_tiles(
            self,
            tiles,
            np.repeat(np.arange(len(segments)), [n * len(col_tiles) for _, n in segments]),
        )
        return CodedMatrix.build(head, stream, raw, index, self.device)

    @staticmethod
    def concat_rows(parts: list[CodedMatrix]) -> CodedMatrix:
        """Stacks matrices of equal width along rows; every part keeps its table and window.

        Parts that shall be stacked later are best encoded with one tile_cols and with
        allow_stored=False: stored parts stack with stored ones only.

        Raises:
            ValueError: parts differ in format, cols, tile_cols, scale_bits, predictor, scale kind;
                some but not all are stored; too many segments together.
        """
        infos = [_row_scaled(p.info) for p in parts]
        if not infos:
            raise ValueError("concat_rows: no parts")
        keys = ("fmt", "cols", "stored", "tile_cols", "scale_bits", "predictor", "scale_kind")
        for key in keys:
            values = {getattr(i, key) for i in infos}
            if len(values) > 1:
                shown = ", ".join(str(getattr(i, key)) for i in infos)
                remedy = "; encode all with allow_stored=False" if key == "stored" else ""
                raise ValueError(f"concat_rows: parts differ in {key}: {shown}{remedy}")
        first, scale = infos[0], None
        if first.scale_kind:
            if first.scale_kind != ROW_SCALE:
                raise ValueError("concat_rows: parts with one scale per tensor; scale rows instead")
            scale = np.concatenate([i.scale for i in infos])
        rows = sum(i.rows for i in infos)
        device = parts[0].device
        if first.stored:
            head = replace(first, rows=rows, scale=scale)
            stream = torch.cat([p.stream for p in parts])
            return CodedMatrix.build(head, stream, parts[0].raw, parts[0].index, device)
        if (count := sum(len(i.segments) for i in infos)) > MAX_SEGMENTS:
            raise ValueError(f"concat_rows: {count} segments, at most {MAX_SEGMENTS}")
        len_bits = max(i.len_bits for i in infos)
        streams, records, at, segment = [], [], 0, 0
        for part, info in zip(parts, infos, strict=True):
            body = part.stream[: info.stream_bytes - STREAM_PAD]
            starts, lengths, segments = read_index(part.index.cpu().numpy(), info.len_bits)
            records.append(write_index(starts + at, lengths, segments + segment, len_bits))
            streams.append(body)
            at += body.numel()
            segment += len(info.segments)
        streams.append(torch.zeros(STREAM_PAD, dtype=torch.uint8, device=device))
        head = replace(
            first,
            rows=rows,
            len_bits=len_bits,
            segments=tuple(s for i in infos for s in i.segments),
            scale=scale,
        )
        raw = torch.cat([p.raw for p in parts])
        return CodedMatrix.build(head, torch.cat(streams), raw, np.concatenate(records), device)


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


def _as_tensor(buffer, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(buffer, torch.Tensor):
        return buffer.contiguous()
    if isinstance(buffer, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(buffer))
    return (
        torch.frombuffer(bytearray(buffer), dtype=dtype)
        if len(buffer)
        else torch.empty(0, dtype=dtype)
    )


def _row_scaled(info: Head) -> Head:
    """One row's scale is both the tensor's and the row's; encoders write the former."""
    if info.rows == 1 and info.scale_kind == TENSOR_SCALE:
        return replace(info, scale_kind=ROW_SCALE)
    return info


def _range(s: slice, size: int, name: str) -> tuple[int, int]:
    start, stop, step = s.indices(size)
    if step != 1:
        raise ValueError(f"slice: {name} with step {step}")
    return start, max(start, stop)


def _cut_segments(segments, r0: int, r1: int):
    """Tile rows of rows r0..r1, and per touched segment the rest of it and its tile rows."""
    tile_rows, kept, row, tile_row = [], [], 0, 0
    for s in segments:
        lo, hi = max(r0 - row, 0), min(r1 - row, s.rows)
        if lo < hi:
            for border in (lo, hi):
                if border % TILE_ROWS and border != s.rows:
                    raise ValueError(f"slice: row {row + border} is inside a tile of 16 rows")
            numbers = range(tile_row + lo // TILE_ROWS, tile_row + ceil_div(hi, TILE_ROWS))
            tile_rows += numbers
            kept.append((replace(s, rows=hi - lo), len(numbers)))
        row += s.rows
        tile_row += ceil_div(s.rows, TILE_ROWS)
    return tile_rows, kept


def _raw_rows(raw: torch.Tensor, grid, tile_rows, col_tiles) -> torch.Tensor:
    if not tile_rows or not col_tiles:
        return raw[:0]
    begin = grid.raw_offset(0, col_tiles[0])
    last = col_tiles[-1] + 1
    end = grid.raw_row_bytes if last == grid.col_tiles else grid.raw_offset(0, last)
    rows = raw.view(grid.tile_rows, grid.raw_row_bytes)
    return rows[torch.tensor(tile_rows, device=raw.device), begin:end].reshape(-1)


def _gather_tiles(coded: CodedMatrix, tiles: np.ndarray, segments: np.ndarray):
    """Coded plane and index of some tiles, in the given order."""
    info = coded.info
    starts, lengths, _ = read_index(coded.index.cpu().numpy(), info.len_bits)
    starts, lengths = starts[tiles], lengths[tiles]
    sizes = -(-2 * lengths.sum(axis=1) // STREAM_ALIGN) * STREAM_ALIGN
    pieces = [coded.stream[a : a + n] for a, n in zip(starts.tolist(), sizes.tolist(), strict=True)]
    pieces.append(torch.zeros(STREAM_PAD, dtype=torch.uint8, device=coded.device))
    index = write_index(np.cumsum(sizes) - sizes, lengths, segments, info.len_bits)
    return torch.cat(pieces), index


def read_index(index: np.ndarray, len_bits: int):
    """First byte [T], lane lengths in words [T, 32], segment [T] of every tile, all int64."""
    records = index.view(np.uint32).reshape(-1, record_ints(len_bits)).astype(np.int64)
    lengths = np.empty((len(records), LANES), np.int64)
    for lane in range(LANES):
        word, shift = divmod(lane * len_bits, 32)
        delta = records[:, 2 + word] >> shift
        if shift + len_bits > 32:
            delta |= records[:, 3 + word] << (32 - shift)
        lengths[:, lane] = (records[:, 1] & 0xFFFF) + (delta & ((1 << len_bits) - 1))
    return records[:, 0] * STREAM_ALIGN, lengths, records[:, 1] >> 16


def write_index(starts, lengths, segments, len_bits: int) -> np.ndarray:
    """The inverse of read_index, as int32 [T * record]."""
    lengths = np.asarray(lengths, np.int64).reshape(-1, LANES)
    shortest = lengths.min(axis=1, initial=0xFFFF)
    records = np.zeros((len(lengths), record_ints(len_bits)), np.int64)
    records[:, 0] = np.asarray(starts) // STREAM_ALIGN
    records[:, 1] = shortest | np.asarray(segments) << 16
    for lane in range(LANES):
        word, shift = divmod(lane * len_bits, 32)
        delta = lengths[:, lane] - shortest
        records[:, 2 + word] |= delta << shift & 0xFFFFFFFF
        if shift + len_bits > 32:
            records[:, 3 + word] |= delta >> (32 - shift)
    return records.astype(np.uint32).view(np.int32).reshape(-1)
