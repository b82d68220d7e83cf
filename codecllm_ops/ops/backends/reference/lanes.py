"""Tiles as lanes see them, in pure torch: where pairs stand, and the raw plane (docs/format.md,
sections 3 and 5)."""

from __future__ import annotations

import torch

from ....format.geometry import GROUP_COLS, LANES, TILE_ROWS, containers
from ....format.weight_formats import WeightFormat


def lanes_to_rows(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """[T, groups, 4, 32] values of the two columns of each pair to [T, 16, 16 * groups]."""
    t, groups = first.shape[:2]
    pairs = torch.stack((first, second), dim=-1)  # [T, group, j, lane, 2]
    pairs = pairs.view(t, groups, 2, 2, 8, 4, 2)  # [T, group, col half, row half, g, t, 2]
    return pairs.permute(0, 3, 4, 1, 2, 5, 6).reshape(t, TILE_ROWS, GROUP_COLS * groups)


def rows_to_lanes(rows: torch.Tensor) -> torch.Tensor:
    """[T, 16, 16 * groups] to [T, groups, 4, 32, 2]: the inverse of lanes_to_rows."""
    t, groups = rows.shape[0], rows.shape[2] // GROUP_COLS
    rows = rows.view(t, 2, 8, groups, 2, 4, 2)
    return rows.permute(0, 3, 4, 1, 2, 5, 6).reshape(t, groups, 4, LANES, 2)


def containers_of(data: torch.Tensor) -> torch.Tensor:
    """32-bit words, int64 [T, n], from bytes [T, 4 * n]."""
    ints = data.long().view(data.shape[0], data.shape[1] // 4, 4)
    return ints[..., 0] | ints[..., 1] << 8 | ints[..., 2] << 16 | ints[..., 3] << 24


def bytes_of_containers(ints: torch.Tensor) -> torch.Tensor:
    """The inverse of containers_of."""
    by = torch.arange(0, 32, 8, device=ints.device)
    t, n = ints.shape
    return (ints[..., None] >> by & 0xFF).to(torch.uint8).view(t, 4 * n)


def from_quads(ints: torch.Tensor, count: int) -> torch.Tensor:
    """Containers [T, count, 32] of a plane from its words [T, count * 32] in memory."""
    t, whole = ints.shape[0], count // 4 * 4
    quads = ints[:, : whole * LANES].view(t, whole // 4, LANES, 4)
    tail = ints[:, whole * LANES :].view(t, LANES, count - whole)
    return torch.cat((quads.transpose(2, 3).reshape(t, whole, LANES), tail.transpose(1, 2)), dim=1)


def to_quads(lanes: torch.Tensor) -> torch.Tensor:
    """The inverse of from_quads."""
    t, count, _ = lanes.shape
    whole = count // 4 * 4
    quads = lanes[:, :whole].view(t, whole // 4, 4, LANES).transpose(2, 3).flatten(1)
    return torch.cat((quads, lanes[:, whole:].transpose(1, 2).flatten(1)), dim=1)


def unpack_raw(raw: torch.Tensor, groups: int, fmt: WeightFormat) -> torch.Tensor:
    """Raw bits in place, int64 [T, 16, width], from bytes [T, plane_tile_bytes]."""
    t, at, out = raw.shape[0], 0, 0
    ints = containers_of(raw)
    for plane in fmt.planes:
        count = containers(plane.bits, groups)
        lanes = from_quads(ints[:, at : at + count * LANES], count)
        at += count * LANES
        per = 16 // plane.bits
        by = torch.arange(0, 16, plane.bits, device=raw.device)[:, None]
        pairs = (lanes[:, :, None] >> by | lanes[:, :, None] << (32 - by)) & 0xFFFFFFFF
        pairs = pairs.reshape(t, count * per, LANES)[:, : 4 * groups].view(t, groups, 4, LANES)
        rows = lanes_to_rows(pairs & plane.mask, pairs >> 16 & plane.mask)
        out = out | (rows << (16 if fmt.word_bits == 32 and not plane.low_half else 0))
    return out


def pack_raw(tile: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    """Raw plane, uint8 [tile rows, plane_tile_bytes], of words [tile rows, 16, width]."""
    t, groups = tile.shape[0], tile.shape[2] // GROUP_COLS
    out = []
    for plane in fmt.planes:
        shift = 16 if fmt.word_bits == 32 and not plane.low_half else 0
        halves = rows_to_lanes(tile >> shift & plane.mask).reshape(t, 4 * groups, LANES, 2)
        pairs = halves[..., 0] | halves[..., 1] << 16
        per, count = 16 // plane.bits, containers(plane.bits, groups)
        padded = torch.zeros((t, count * per, LANES), dtype=torch.int64)
        padded[:, : 4 * groups] = pairs
        by = torch.arange(0, 16, plane.bits)[:, None]
        padded = padded.view(t, count, per, LANES)
        rotated = (padded << by | padded >> (32 - by)) & 0xFFFFFFFF
        lanes = torch.zeros((t, count, LANES), dtype=torch.int64)
        for k in range(per):
            lanes |= rotated[:, :, k]
        out.append(to_quads(lanes))
    return bytes_of_containers(torch.cat(out, dim=1))
