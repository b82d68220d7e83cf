"""The coding fixed in pure torch: every tile of a column of tiles at once (docs/format.md,
section 13). Also what transcodes and checks for backends without kernels of their own for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ....codec.operand import Operand
from ....codec.tiles import TABLE_HEADER
from ....format.errors import CorruptStreamError
from ....format.fixed import (
    FIXED_CODE,
    FIXED_CODES,
    FIXED_CONTAINERS,
    FIXED_PLACE,
    FIXED_PLANE_BITS,
    FIXED_SPREAD,
)
from ....format.geometry import GROUP_COLS, LANES, TILE_ROWS, Grid, ceil_div
from ....format.layout_word import Layout
from .lanes import (
    bytes_of_containers,
    containers_of,
    from_quads,
    lanes_to_rows,
    rows_to_lanes,
    to_quads,
)

_MAX_TILE_ROWS = 256  # at once: bounds the memory of the int64 intermediates
_HALF = 0xFFFF
_CODE, _MANTISSA = FIXED_CODE & _HALF, 0x007F
_WORD = 0xFFFFFFFF


class _Matrix:
    """An operand with its geometry; sizes checked against each other."""

    def __init__(self, coded: Operand):
        layout = Layout.unpack(coded.layout)
        self.stream, self.table, self.tile_cols = coded.stream, coded.table, layout.tile_cols
        if coded.table.shape[1] != TABLE_HEADER or coded.index.shape[1] != 1:
            raise CorruptStreamError(
                f"corrupt index or table: {list(coded.index.shape)} and {list(coded.table.shape)}"
            )
        header = coded.table[:, :5].to("cpu", torch.int64)
        self.first_row, self.segment_rows = header[:, 2].tolist(), header[:, 3].tolist()
        self.first_tile_row = header[:, 4].tolist()
        self.grid = Grid(FIXED_PLANE_BITS, tuple(self.segment_rows), coded.cols, self.tile_cols)
        grid = self.grid
        if grid.rows != coded.rows or coded.stream.numel() != grid.plane_bytes:
            raise CorruptStreamError(
                f"coded plane: {coded.stream.numel()} bytes and a table of {grid.rows} rows, "
                f"expected {grid.plane_bytes} and {coded.rows}"
            )
        if coded.index.shape[0] != grid.tiles:
            raise CorruptStreamError(f"index: {coded.index.shape[0]} records, not {grid.tiles}")
        self.ends = coded.index.flatten().long()
        self.entries = containers_of(coded.raw.view(1, -1)).flatten()
        counts = self.ends.diff(prepend=self.ends.new_zeros(1))
        last = int(self.ends[-1]) if grid.tiles else 0
        if (counts < 0).any():
            raise CorruptStreamError(f"index: tile {int(counts.argmin())} ends before it begins")
        if last != self.entries.numel():
            raise CorruptStreamError(f"index: {last} entries, the list has {self.entries.numel()}")
        self.tile_of = torch.repeat_interleave(counts)

    def segment_of(self, tile_rows: torch.Tensor) -> torch.Tensor:
        """Numbers of the segments of rows of tiles."""
        firsts = torch.tensor(self.first_tile_row, device=tile_rows.device)
        return torch.searchsorted(firsts, tile_rows, right=True) - 1

    def halves(self, tile_rows: torch.Tensor, col_tile: int) -> torch.Tensor:
        """12 bits in place, int64 [T, 16, width]."""
        groups = self.grid.cols_of(col_tile) // GROUP_COLS
        begin = self.grid.plane_offset(tile_rows, col_tile)
        reach = torch.arange(4 * LANES * FIXED_CONTAINERS * groups, device=self.stream.device)
        lanes = from_quads(
            containers_of(self.stream[begin[:, None] + reach]), FIXED_CONTAINERS * groups
        )
        r = lanes.view(len(tile_rows), groups, FIXED_CONTAINERS, LANES)
        pair = torch.zeros_like(r[:, :, 0])
        for i, (mask, by) in enumerate(FIXED_SPREAD):
            pair = pair | (_rotated(r[:, :, i], -by) & mask)
        pairs = torch.cat((r & FIXED_PLACE, pair[:, :, None]), dim=2)
        return lanes_to_rows(pairs & _HALF, pairs >> 16)


def _rotated(ints: torch.Tensor, left: int) -> torch.Tensor:
    left %= 32
    return (ints << left | ints >> (32 - left)) & _WORD


def decode_words(coded: Operand) -> torch.Tensor:
    """Decodes to uint8 [rows, cols * 2]."""
    m = _Matrix(coded)
    out = coded.stream.new_empty((coded.rows, 2 * coded.cols))
    for row, tile_rows in _bands(m):
        words = _decode_tile_rows(m, tile_rows).flatten(0, 1)
        end = min(row + len(words), _end_of_segment(m, row))
        out[row:end] = _to_bytes(words[: end - row])
    return out


def decode_rows_words(ids: torch.Tensor, coded: Operand) -> torch.Tensor:
    """Decodes rows `ids` (int64 [n]) to uint8 [n, cols * 2]."""
    m = _Matrix(coded)
    if not ids.numel() or not coded.cols:
        return coded.stream.new_empty((ids.numel(), 2 * coded.cols))
    firsts = torch.tensor(m.first_row, device=ids.device)
    segment = torch.searchsorted(firsts, ids, right=True) - 1
    local = ids - firsts[segment]
    tile_row = torch.tensor(m.first_tile_row, device=ids.device)[segment] + local // TILE_ROWS
    wanted, inverse = torch.unique(tile_row, return_inverse=True)
    return _to_bytes(_decode_tile_rows(m, wanted)[inverse, local % TILE_ROWS])


def _bands(m: _Matrix):
    """First row, and rows of tiles, of stretches inside one segment."""
    for row, rows, tile_row in zip(m.first_row, m.segment_rows, m.first_tile_row, strict=True):
        count = ceil_div(rows, TILE_ROWS)
        for at in range(0, count, _MAX_TILE_ROWS):
            stop = tile_row + min(count, at + _MAX_TILE_ROWS)
            yield (
                row + at * TILE_ROWS,
                torch.arange(tile_row + at, stop, device=m.stream.device),
            )


def _end_of_segment(m: _Matrix, row: int) -> int:
    spans = zip(m.first_row, m.segment_rows, strict=True)
    return max(first + rows for first, rows in spans if first <= row and rows)


def _to_bytes(words: torch.Tensor) -> torch.Tensor:
    if not words.numel():
        return words.new_empty((words.shape[0], 2 * words.shape[1]), dtype=torch.uint8)
    return words.to(torch.int16).view(torch.uint8)


def _decode_tile_rows(m: _Matrix, tile_rows: torch.Tensor) -> torch.Tensor:
    """Words, int64 [n, 16, cols], of some rows of tiles, ascending."""
    device, cols = m.stream.device, m.grid.cols
    out = torch.empty((len(tile_rows), TILE_ROWS, cols), dtype=torch.int64, device=device)
    base = m.table[:, 0].long()[m.segment_of(tile_rows)][:, None, None]
    for col_tile in range(m.grid.col_tiles):
        halves, first = m.halves(tile_rows, col_tile), col_tile * m.tile_cols
        codes = halves & _CODE
        lies = ((codes == 0) & (halves & _MANTISSA != 0)).flatten(1).any(1)
        if lies.any():
            tile = int(tile_rows[lies][0]) * m.grid.col_tiles + col_tile
            raise CorruptStreamError(f"coded plane: tile {tile} has a code of zero with a mantissa")
        keep = min(halves.shape[2], cols - first)
        words = halves & ~_CODE | torch.where(codes != 0, codes + (base << 7), codes)
        out[:, :, first : first + keep] = words[:, :, :keep]
    if m.grid.col_tiles:
        _put_listed(m, tile_rows, out)
    return out


def _put_listed(m: _Matrix, tile_rows: torch.Tensor, words: torch.Tensor) -> None:
    here = torch.full((m.grid.tile_rows,), -1, device=words.device)
    here[tile_rows] = torch.arange(len(tile_rows), device=words.device)
    number = here[m.tile_of // m.grid.col_tiles]
    wanted = number >= 0
    entries, number = m.entries[wanted], number[wanted]
    row, in_tile = entries >> 28, entries >> 16 & 0xFFF
    col = m.tile_of[wanted] % m.grid.col_tiles * m.tile_cols + in_tile
    outside = (in_tile >= m.tile_cols) | (col >= m.grid.cols)
    if outside.any():
        tile = int(m.tile_of[wanted][outside][0])
        raise CorruptStreamError(f"list: a weight of tile {tile} lies outside of it")
    words[number, row, col] = entries & 0xFFFF


# ---- transcoding --------------------------------------------------------------------------------


def from_rows(
    rows_words: Callable[[torch.Tensor], torch.Tensor],
    segment_rows: list[int],
    cols: int,
    bases: list[int],
    tile_cols: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Plane, list, ends of the tiles' entries (uint8, uint8, int32 [tiles]).

    Args:
        rows_words: from ids (int64 [n]) to their words, uint8 [n, cols * 2].
    """
    planes, lists, counts, first = [], [], [], 0
    for rows, base in zip(segment_rows, bases, strict=True):
        for at in range(0, rows, _MAX_TILE_ROWS * TILE_ROWS):
            stop = min(rows, at + _MAX_TILE_ROWS * TILE_ROWS)
            ids = torch.arange(first + at, first + stop, device=device)
            words = containers_of_halves(rows_words(ids), cols)
            plane, listed, count = _pack(words, base, tile_cols)
            planes.append(plane)
            lists.append(listed)
            counts.append(count)
        first += rows
    nothing = torch.empty(0, dtype=torch.uint8, device=device)
    ends = torch.cat([nothing.long(), *counts]).cumsum(0)
    if ends.numel() and int(ends[-1]) >= 1 << 31:
        raise ValueError(f"fixed: {int(ends[-1])} weights outside their windows, too many")
    plane, listed = torch.cat([nothing, *planes]), torch.cat([nothing, *lists])
    return plane, listed, ends.to(torch.int32)


def containers_of_halves(data: torch.Tensor, cols: int) -> torch.Tensor:
    """Words of 16 bits, int64 [n, cols], from bytes [n, cols * 2]."""
    halves = data.long().view(data.shape[0], cols, 2)
    return halves[..., 0] | halves[..., 1] << 8


def _pack(words: torch.Tensor, base: int, tile_cols: int):
    """Plane, list and number of entries of each tile, for rows that begin a row of tiles."""
    rows, cols = words.shape
    tile_rows, col_tiles = ceil_div(rows, TILE_ROWS), ceil_div(cols, tile_cols)
    padded = words.new_zeros((tile_rows * TILE_ROWS, cols))
    padded[:rows] = words
    code = (padded >> 7 & 0xFF) - base
    inside = ((code >= 1) & (code <= FIXED_CODES)) | (padded & 0x7FFF == 0)
    code = torch.where(padded & 0x7FFF == 0, 0, code)
    halves = torch.where(inside, padded & 0x807F | code << 7, 0)
    row, col = torch.nonzero(~inside, as_tuple=True)
    tile = row // TILE_ROWS * col_tiles + col // tile_cols
    entry = (row % TILE_ROWS) << 28 | (col % tile_cols) << 16 | padded[row, col]
    order = torch.argsort(tile << 32 | entry)
    planes = []
    for first in range(0, cols, tile_cols):
        part = halves[:, first : first + tile_cols]
        width = ceil_div(part.shape[1], GROUP_COLS) * GROUP_COLS
        part = torch.nn.functional.pad(part, (0, width - part.shape[1]))
        planes.append(_pack_tiles(part.view(tile_rows, TILE_ROWS, width)))
    listed = bytes_of_containers(entry[order][None]).flatten()
    return (
        torch.cat(planes, dim=1).flatten() if planes else listed[:0],
        listed,
        torch.bincount(tile, minlength=tile_rows * col_tiles),
    )


def _pack_tiles(halves: torch.Tensor) -> torch.Tensor:
    """Bytes [T, 384 * groups] of tiles [T, 16, width] of 12 bits in place."""
    lanes = rows_to_lanes(halves)
    pairs = lanes[..., 0] | lanes[..., 1] << 16  # [T, group, j, lane]
    r = [
        pairs[:, :, i] | _rotated(pairs[:, :, 3] & mask, by)
        for i, (mask, by) in enumerate(FIXED_SPREAD)
    ]
    containers = torch.stack(r, dim=2).flatten(1, 2)
    return bytes_of_containers(to_quads(containers))


# ---- check --------------------------------------------------------------------------------------


def lying_tile(coded: Operand) -> int:
    """The first tile with a code of zero and a mantissa, or a list that is not ascending, leaves
    the matrix or names a weight that the plane has as well; -1: there is none.
    """
    m = _Matrix(coded)
    if not m.grid.tiles:
        return -1
    bad = torch.zeros(m.grid.tiles, dtype=torch.bool, device=coded.stream.device)
    row, col = m.entries >> 28, m.entries >> 16 & 0xFFF
    position = m.tile_of << 16 | m.entries >> 16
    late = position[1:] <= position[:-1]
    bad[m.tile_of[1:][late]] = True
    firsts = torch.tensor(m.first_tile_row, device=bad.device)
    segment = m.segment_of(m.tile_of // m.grid.col_tiles)
    rows_left = torch.tensor(m.segment_rows, device=bad.device)[segment]
    rows_left = rows_left - (m.tile_of // m.grid.col_tiles - firsts[segment]) * TILE_ROWS
    cols_left = coded.cols - m.tile_of % m.grid.col_tiles * m.tile_cols
    outside = (row >= rows_left) | (col >= cols_left) | (col >= m.tile_cols)
    bad[m.tile_of[outside]] = True
    for _, tile_rows in _bands(m):
        for col_tile in range(m.grid.col_tiles):
            halves = m.halves(tile_rows, col_tile)
            lies = (halves & _CODE == 0) & (halves & _MANTISSA != 0)
            tiles = tile_rows * m.grid.col_tiles + col_tile
            bad[tiles] |= lies.flatten(1).any(1)
            mine = (m.tile_of >= tiles[0]) & (m.tile_of <= tiles[-1])
            mine &= (m.tile_of % m.grid.col_tiles == col_tile) & (col < halves.shape[2])
            at = m.tile_of[mine] // m.grid.col_tiles - tile_rows[0]
            taken = halves[at, row[mine], col[mine]] != 0
            bad[m.tile_of[mine][taken]] = True
    return int(bad.nonzero()[0]) if bad.any() else -1
