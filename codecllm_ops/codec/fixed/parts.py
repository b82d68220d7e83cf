"""Slices and concatenations of fixed matrices (docs/format.md, section 13)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...format.fixed import LISTED_BYTES
from ...format.head import Head
from ..tiles import cut_tiles, joined_segments, plane_of

if TYPE_CHECKING:
    from ..coded import CodedMatrix

CONCAT_KEYS = ("tile_cols",)


def cut(coded: CodedMatrix, head: Head, rows: slice, cols: slice) -> tuple:
    """Head, plane, list and index of a part.

    Raises:
        ValueError: a border inside a tile.
    """
    part = cut_tiles(coded.info, rows, cols)
    plane = plane_of(coded.stream, coded.info.grid, part)
    ends = _ends(coded)
    begins = np.concatenate(([0], ends))[part.tiles]
    counts = ends[part.tiles] - begins
    new_ends = np.cumsum(counts)
    wanted = np.arange(counts.sum()) + np.repeat(begins - (new_ends - counts), counts)
    listed = coded.raw.view(-1, LISTED_BYTES)[torch.from_numpy(wanted).to(coded.device)]
    per_segment = [int(c.sum()) for c in np.split(counts, np.cumsum(part.tiles_of))]
    segments = tuple(replace(s, listed=n) for s, n in zip(part.segments, per_segment, strict=False))
    return replace(head, segments=segments), plane, listed.flatten(), new_ends.astype(np.int32)


def join(parts: list[CodedMatrix], head: Head) -> tuple:
    """The same for parts below each other; every one keeps its window.

    Raises:
        ValueError: too many segments together, or weights outside their windows.
    """
    joined = joined_segments(parts)
    before = np.cumsum([0] + [p.raw.numel() // LISTED_BYTES for p in parts])
    if before[-1] >= 1 << 31:
        raise ValueError(f"concat_rows: {before[-1]} weights outside their windows, too many")
    ends = [_ends(p) + at for p, at in zip(parts, before, strict=False)]
    plane, listed = (torch.cat([getattr(p, x) for p in parts]) for x in ("stream", "raw"))
    return replace(head, segments=joined), plane, listed, np.concatenate(ends).astype(np.int32)


def _ends(coded: CodedMatrix) -> np.ndarray:
    return coded.index.cpu().numpy().astype(np.int64)
