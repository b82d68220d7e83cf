"""Slices and concatenations of rANS matrices without decoding (docs/format.md, section 11)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...format.geometry import STREAM_PAD
from ...format.head import Head
from ..tiles import cut_tiles, joined_segments, plane_of
from .index import read_index, sizes_of, write_index

if TYPE_CHECKING:
    from ..coded import CodedMatrix

# What parts must share, besides what every coding demands.
CONCAT_KEYS = ("tile_cols", "scale_bits", "predictor")


def cut(coded: CodedMatrix, head: Head, rows: slice, cols: slice) -> tuple:
    """Head, coded plane, raw plane and index of a part.

    Args:
        head: that of the part, but for its segments.

    Raises:
        ValueError: a border inside a tile.
    """
    part = cut_tiles(coded.info, rows, cols)
    raw = plane_of(coded.raw, coded.info.grid, part)
    segments = np.repeat(np.arange(len(part.segments)), part.tiles_of)
    stream, index = _gather_tiles(coded, part.tiles, segments)
    return replace(head, segments=part.segments), stream, raw, index


def join(parts: list[CodedMatrix], head: Head) -> tuple:
    """The same for parts below each other; every one keeps its table and window.

    Raises:
        ValueError: too many segments together.
    """
    infos = [p.info for p in parts]
    joined = joined_segments(parts)
    len_bits = max(i.len_bits for i in infos)
    streams, records, at, segment = [], [], 0, 0
    for part, info in zip(parts, infos, strict=True):
        body = part.stream[: info.stream_bytes - STREAM_PAD]
        starts, lengths, segments = read_index(part.index.cpu().numpy(), info.len_bits)
        records.append(write_index(starts + at, lengths, segments + segment, len_bits))
        streams.append(body)
        at += body.numel()
        segment += len(info.segments)
    streams.append(streams[0].new_zeros(STREAM_PAD))
    head = replace(head, len_bits=len_bits, segments=joined)
    raw = torch.cat([p.raw for p in parts])
    return head, torch.cat(streams), raw, np.concatenate(records)


def _gather_tiles(coded: CodedMatrix, tiles: np.ndarray, segments: np.ndarray):
    """Coded plane and index of some tiles, in the given order."""
    info = coded.info
    starts, lengths, _ = read_index(coded.index.cpu().numpy(), info.len_bits)
    starts, lengths = starts[tiles], lengths[tiles]
    sizes = sizes_of(lengths)
    pieces = [coded.stream[a : a + n] for a, n in zip(starts.tolist(), sizes.tolist(), strict=True)]
    pieces.append(torch.zeros(STREAM_PAD, dtype=torch.uint8, device=coded.device))
    index = write_index(np.cumsum(sizes) - sizes, lengths, segments, info.len_bits)
    return torch.cat(pieces), index
