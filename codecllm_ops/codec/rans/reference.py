"""The codec in the order of docs/format.md, one word at a time. Slow, obvious, complete.

Traps:
* rANS is last in, first out: the encoder runs over groups, pairs and words backwards.
* The words of a group's four pairs come first, then the literals of its escapes.
* Bytes from outside may send a lane anywhere: every word is fetched through `_Lane.word`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ...format.errors import CorruptStreamError
from ...format.geometry import (
    GROUP_COLS,
    LANES,
    PAIRS_PER_GROUP,
    STREAM_ALIGN,
    STREAM_PAD,
    TILE_ROWS,
    containers,
    plane_tile_bytes,
    record_ints,
    round_up,
)
from ...format.head import ESCAPE, RANS_L, Head
from ...format.segments import MAX_INDEX, Segment
from ...format.weight_formats import WeightFormat
from ..order import container_at, pair_position, rotate_left
from .tables import choose_window, padding_value, plan_segment


def encode(
    words: np.ndarray,
    fmt: WeightFormat,
    *,
    tile_cols: int,
    scale_bits: int = 11,
    predictor: int = 0,
) -> tuple[Head, bytes, bytes, np.ndarray]:
    """Encodes [N, K] unsigned words (before `flip`) as one segment.

    Returns:
        head, coded plane, raw plane, tile index (int32).
    """
    rows, cols = words.shape
    words = words.astype(np.uint32) ^ np.uint32(fmt.flip)
    half = words >> np.uint32(fmt.word_bits - 16 if fmt.word_bits == 32 else 0)
    coded = half >> np.uint32(fmt.coded_shift) & np.uint32((1 << fmt.coded_bits) - 1)
    value_counts = np.bincount(coded.ravel(), minlength=1 << fmt.coded_bits)
    pad_value = seed = padding_value(value_counts, fmt)

    head = Head(fmt, rows, cols, tile_cols, scale_bits, 4, (), predictor)
    tiles = []
    for row in range(0, rows, TILE_ROWS):
        for col in range(0, cols, tile_cols):
            width = round_up(min(tile_cols, cols - col), GROUP_COLS)
            tile = np.full((TILE_ROWS, width), pad_value << fmt.coded_shift, np.uint32)
            if fmt.word_bits == 32:
                tile <<= np.uint32(16)
            part = words[row : row + TILE_ROWS, col : col + tile_cols]
            tile[: part.shape[0], : part.shape[1]] = part
            tiles.append((tile, residuals(tile, fmt, predictor, seed)))

    base, segment = _plan([r for _, r in tiles], fmt, rows, seed, scale_bits)
    symbols = dict(zip(segment.pairs.tolist(), range(len(segment.pairs)), strict=True))
    freqs = [*segment.freqs.tolist(), (1 << scale_bits) - int(segment.freqs.sum())]
    starts = np.cumsum([0, *freqs[:-1]]).tolist()

    def encode_lane(residual: np.ndarray, lane: int) -> list[int]:
        x, out = RANS_L, []  # out: words in the order of emission, the decoder's order reversed
        for group in reversed(range(residual.shape[1] // GROUP_COLS)):
            pairs = []
            for j in range(PAIRS_PER_GROUP):
                r, c = pair_position(lane, j)
                r0, r1 = (int(v) for v in residual[r, GROUP_COLS * group + c :][:2])
                i0, i1 = r0 - base, r1 - base
                inside = 0 <= i0 <= MAX_INDEX and 0 <= i1 <= MAX_INDEX
                symbol = symbols.get(32 * i0 + i1) if inside else None
                pairs.append((symbol, r0 | r1 << 8))
            for symbol, literal in reversed(pairs):
                if symbol is None:
                    out.append(literal)
            for symbol, _ in reversed(pairs):
                s = len(freqs) - 1 if symbol is None else symbol
                if x >= freqs[s] << (32 - scale_bits):
                    out.append(x & 0xFFFF)
                    x >>= 16
                x = (x // freqs[s] << scale_bits) + x % freqs[s] + starts[s]
        return [x & 0xFFFF, x >> 16, *reversed(out)]

    lanes = [[encode_lane(r, lane) for lane in range(LANES)] for _, r in tiles]
    stream, raw, records = bytearray(), bytearray(), []
    for (tile, _), tile_lanes in zip(tiles, lanes, strict=True):
        records.append((len(stream) // STREAM_ALIGN, [len(w) for w in tile_lanes]))
        stream += np.array([w for lane in tile_lanes for w in lane], "<u2").tobytes()
        stream += bytes(-len(stream) % STREAM_ALIGN)
        raw += pack_raw(tile, fmt)
    stream += bytes(STREAM_PAD)

    len_bits = index_len_bits([r[1] for r in records])
    index = np.concatenate(
        [pack_record(offset, 0, lengths, len_bits) for offset, lengths in records]
        or [np.zeros(0, np.int32)]
    )
    head = replace(head, segments=(segment,), len_bits=len_bits)
    return head.with_crcs(stream, raw, index.tobytes()), bytes(stream), bytes(raw), index


def _plan(tile_residuals, fmt, rows, seed, scale_bits):
    counts = np.zeros(1 << fmt.coded_bits, np.int64)
    for r in tile_residuals:
        counts += np.bincount(r.ravel(), minlength=counts.size)
    base = choose_window(counts)
    pair_counts = np.zeros(1024, np.int64)
    for r in tile_residuals:
        i = r.astype(np.int64) - base
        i[(i < 0) | (i > MAX_INDEX)] = 31
        pair_counts += np.bincount(32 * i[:, ::2].ravel() + i[:, 1::2].ravel(), minlength=1024)
    return base, plan_segment(pair_counts, rows, base, seed, scale_bits)[0]


def residuals(tile: np.ndarray, fmt: WeightFormat, predictor: int, seed: int) -> np.ndarray:
    """Residuals of a padded tile (section 4)."""
    half = tile >> np.uint32(16 if fmt.word_bits == 32 else 0)
    mask = (1 << fmt.coded_bits) - 1
    v = half.astype(np.int64) >> fmt.coded_shift & mask
    if not predictor:
        return v
    previous = np.concatenate([np.full((TILE_ROWS, 1), seed), v[:, :-1]], axis=1)
    return (v - previous + (1 << (fmt.coded_bits - 1))) & mask


def pack_raw(tile: np.ndarray, fmt: WeightFormat) -> bytes:
    """Raw plane of one padded tile (section 5)."""
    groups = tile.shape[1] // GROUP_COLS
    out = bytearray()
    for plane in fmt.planes:
        shift = 16 if fmt.word_bits == 32 and not plane.low_half else 0
        per_container = 16 // plane.bits
        count = containers(plane.bits, groups)
        buffer = np.zeros(count * LANES, "<u4")
        for lane in range(LANES):
            for n in range(PAIRS_PER_GROUP * groups):
                r, c = pair_position(lane, n % PAIRS_PER_GROUP)
                c += GROUP_COLS * (n // PAIRS_PER_GROUP)
                w0, w1 = (int(w) >> shift & plane.mask for w in tile[r, c : c + 2])
                i, j = divmod(n, per_container)
                buffer[container_at(i, lane, count)] |= rotate_left(w0 | w1 << 16, plane.bits * j)
        out += buffer.tobytes()
    return bytes(out)


def index_len_bits(tile_lengths: list[list[int]]) -> int:
    """Bits that the differences of lane lengths take (section 7)."""
    spread = max((max(lengths) - min(lengths) for lengths in tile_lengths), default=0)
    return max(1, int(spread).bit_length())


def pack_record(offset: int, segment: int, lengths: list[int], len_bits: int) -> np.ndarray:
    """A tile's record of the index, int32 (section 7)."""
    shortest = min(lengths)
    packed = 0
    for lane, length in enumerate(lengths):
        packed |= (length - shortest) << (len_bits * lane)
    words = packed.to_bytes(4 * len_bits, "little")
    record = np.array([offset, shortest | segment << 16], np.uint32)
    return np.concatenate([record, np.frombuffer(words, "<u4")]).view(np.int32)


class _Lane:
    """A lane's words; running out of them is corruption, never an over-read."""

    def __init__(self, words: np.ndarray, where: str):
        self.words, self.at, self.where = words, 0, where

    def word(self) -> int:
        if self.at >= len(self.words):
            raise CorruptStreamError(f"coded plane: {self.where} runs out of words")
        self.at += 1
        return int(self.words[self.at - 1])


def decode(head: Head, stream: bytes, raw: bytes, index: np.ndarray) -> np.ndarray:
    """Decodes to [N, K] unsigned words.

    Raises:
        CorruptStreamError: a tile lies outside the coded plane, or a lane does not end in the
            encoder's first state at its last word.
    """
    fmt = head.fmt
    dtype = np.dtype(f"<u{fmt.word_bytes}")
    if head.stored:
        return np.frombuffer(stream, dtype).reshape(head.rows, head.cols).copy()
    grid = head.grid
    out = np.zeros((head.rows, head.cols), dtype)
    if not out.size:
        return out
    records = np.asarray(index).view(np.uint32).reshape(-1, record_ints(head.len_bits))
    words = np.frombuffer(stream, "<u2", len(stream) // 2)
    row = tile_row = 0
    for n, segment in enumerate(head.segments):
        owners = symbols_of_slots(segment, head.scale_bits)
        for first in range(0, segment.rows, TILE_ROWS):
            for col_tile in range(grid.col_tiles):
                number = tile_row * grid.col_tiles + col_tile
                if records[number, 1] >> 16 != n:
                    raise CorruptStreamError(f"tile index: tile {number} not of segment {n}")
                width = grid.cols_of(col_tile)
                at = grid.plane_offset(tile_row, col_tile)
                tile = unpack_raw(
                    raw[at : at + plane_tile_bytes(fmt.plane_bits, width)], width, fmt
                )
                residual = _decode_tile(
                    words, records[number], width, owners, segment, head, number
                )
                _insert_coded(tile, residual, fmt, head.predictor, segment.seed)
                tile ^= np.uint32(fmt.flip)
                c = col_tile * head.tile_cols
                target = out[row + first : row + min(first + TILE_ROWS, segment.rows)]
                target = target[:, c : c + width]
                target[:] = tile[: target.shape[0], : target.shape[1]]
            tile_row += 1
        row += segment.rows
    return out


def lane_lengths(record: np.ndarray, len_bits: int) -> list[int]:
    """Words of each lane, from a record."""
    packed = int.from_bytes(record[2:].astype("<u4").tobytes(), "little")
    mask = (1 << len_bits) - 1
    shortest = int(record[1]) & 0xFFFF
    return [shortest + (packed >> (len_bits * lane) & mask) for lane in range(LANES)]


def _decode_tile(words, record, width, owners, segment, head, number) -> np.ndarray:
    lengths = lane_lengths(record, head.len_bits)
    at = int(record[0]) * (STREAM_ALIGN // 2)
    if at + sum(lengths) > len(words) - STREAM_PAD // 2:
        raise CorruptStreamError(f"tile index: tile {number} ends beyond the coded plane")
    residual = np.zeros((TILE_ROWS, width), np.int64)
    for lane in range(LANES):
        where = f"tile {number} lane {lane}"
        _decode_lane(
            _Lane(words[at : at + lengths[lane]], where), lane, residual, owners, segment, head
        )
        at += lengths[lane]
    return residual


def symbols_of_slots(segment: Segment, scale_bits: int) -> list[tuple[int, int, int]]:
    """Which symbol owns each slot: its id, freq and start (section 6)."""
    escape_freq = (1 << scale_bits) - int(segment.freqs.sum())
    owners, start = [], 0
    for symbol, freq in [
        *zip(segment.pairs.tolist(), segment.freqs.tolist(), strict=True),
        (ESCAPE, escape_freq),
    ]:
        owners += [(symbol, freq, start)] * freq
        start += freq
    return owners


def _decode_lane(stream, lane, residual, owners, segment, head) -> None:
    scale_bits, base = head.scale_bits, segment.window_base
    value_mask = (1 << head.fmt.coded_bits) - 1
    x = stream.word() | stream.word() << 16
    for group in range(residual.shape[1] // GROUP_COLS):
        escapes = []
        for j in range(PAIRS_PER_GROUP):
            slot = x % (1 << scale_bits)
            symbol, freq, start = owners[slot]
            x = freq * (x >> scale_bits) + slot - start
            if x < RANS_L:
                x = x << 16 | stream.word()
            r, c = pair_position(lane, j)
            c += GROUP_COLS * group
            residual[r, c], residual[r, c + 1] = base + symbol // 32, base + symbol % 32
            if symbol == ESCAPE:
                escapes.append((r, c))
        for r, c in escapes:
            literal = stream.word()
            residual[r, c], residual[r, c + 1] = literal & value_mask, literal >> 8 & value_mask
    if x != RANS_L or stream.at != len(stream.words):
        raise CorruptStreamError(
            f"coded plane: {stream.where} ends in state {x:#x} with "
            f"{len(stream.words) - stream.at} words left"
        )


def unpack_raw(raw: bytes, width: int, fmt: WeightFormat) -> np.ndarray:
    """Raw bits of one tile as [16, width] words with a coded field of zero."""
    groups = width // GROUP_COLS
    tile = np.zeros((TILE_ROWS, width), np.uint32)
    at = 0
    for plane in fmt.planes:
        shift = 16 if fmt.word_bits == 32 and not plane.low_half else 0
        per_container = 16 // plane.bits
        count = containers(plane.bits, groups)
        buffer = np.frombuffer(raw, "<u4", count * LANES, at)
        at += buffer.nbytes
        for lane in range(LANES):
            for n in range(PAIRS_PER_GROUP * groups):
                i, j = divmod(n, per_container)
                pair = rotate_left(int(buffer[container_at(i, lane, count)]), 32 - plane.bits * j)
                r, c = pair_position(lane, n % PAIRS_PER_GROUP)
                c += GROUP_COLS * (n // PAIRS_PER_GROUP)
                tile[r, c] |= (pair & plane.mask) << shift
                tile[r, c + 1] |= (pair >> 16 & plane.mask) << shift
    return tile


def _insert_coded(tile, residual, fmt, predictor, seed) -> None:
    v = residual
    mask = (1 << fmt.coded_bits) - 1
    if predictor:
        v = (np.cumsum(residual - (1 << (fmt.coded_bits - 1)), axis=1) + seed) & mask
    shift = fmt.coded_shift + (16 if fmt.word_bits == 32 else 0)
    tile |= (v << shift).astype(np.uint32)
