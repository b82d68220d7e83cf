"""Any matrix of bfloat16 to the coding `fixed`: it is decoded tile by tile, once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...format.errors import UnsupportedFormatError
from ...format.fixed import FIXED_UNIT, MAX_FIXED_TILE_COLS
from ...format.geometry import GROUP_COLS, TILE_ROWS, ceil_div, default_tile_cols
from ...format.head import Head
from ...format.layout_word import CODINGS, Layout
from ...format.scales import NO_SCALE
from ...format.segments import Segment
from ...format.weight_formats import FORMATS, choose
from ..assemble import assemble
from ..operand import Operand
from ..stored import head_of
from .window import choose_window, sampled_rows

if TYPE_CHECKING:
    from ..coded import CodedMatrix

_FORMAT = FORMATS["bf16"]
_UNIT_COLS = FIXED_UNIT * GROUP_COLS  # tiles of whole quads


def usual_tile_cols(cols: int) -> int:
    """Columns of the tiles that a matrix gets where nobody says."""
    return default_tile_cols(cols, _FORMAT, _UNIT_COLS)


def check_format(name: str) -> None:
    """Raises UnsupportedFormatError unless the coding exists for that weight format."""
    if name != _FORMAT.name:
        raise UnsupportedFormatError(
            f'the coding "fixed" is for {_FORMAT.name}: it has no place for the words of {name}'
        )


def check_tile_cols(tile_cols: int | None) -> None:
    """Raises ValueError unless tiles may have so many columns."""
    most = MAX_FIXED_TILE_COLS
    if tile_cols is not None and (tile_cols % 16 or not 16 <= tile_cols <= most):
        raise ValueError(f"fixed: tile_cols {tile_cols} is not a multiple of 16 from 16 to {most}")


def convert(
    source: CodedMatrix, tile_cols: int | None = None, **options: Any
) -> tuple[torch.Tensor, ...]:
    """The four tensors of the matrix in this coding; its segments stay, each with its own window.

    Raises:
        UnsupportedFormatError: the weight format is not bf16.
        ValueError: tile_cols out of range, or other options.
    """
    if options:
        raise ValueError(f'to("fixed") takes tile_cols, not {", ".join(options)}')
    info = source.info
    check_format(info.fmt.name)
    rows = tuple(s.rows for s in info.segments) if info.segments else (info.rows,)
    return _encode(source.operand, rows, tile_cols)


def encode(
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    format: str | None,
    tile_cols: int | None,
    allow_stored: bool,
) -> tuple[torch.Tensor, ...]:
    """The four tensors of a dense matrix [rows, cols]; see codecllm_ops.encode."""
    if weight.dim() != 2:
        raise ValueError(f"encode: weight has shape {list(weight.shape)}, a matrix [N, K] is coded")
    check_format(choose(format, weight.dtype).name)
    if scale is not None:
        raise ValueError("encode: a scale belongs to integers")
    tensors = encode_words(weight, tile_cols)
    size = sum(t.nbytes for t in tensors)
    head = head_of(_FORMAT, *weight.shape, None, NO_SCALE)
    if not allow_stored or size < weight.nbytes + len(head.pack()):
        return tensors
    words = _bytes(weight).clone()  # it may be the weight's own memory
    return assemble(head, words, b"", np.zeros(0, np.int32), weight.device)


def encode_words(words: torch.Tensor, tile_cols: int | None = None) -> tuple[torch.Tensor, ...]:
    """The four tensors of a dense matrix, bfloat16 [rows, cols], without a copy of it."""
    stream = _bytes(words)
    nothing = torch.empty((0, 0), dtype=torch.int32, device=words.device)
    layout = Layout(_FORMAT.id, CODINGS.index("stored"), 0, 0, NO_SCALE, 0).pack()
    dense = Operand(stream, stream[:0], nothing, nothing, None, *words.shape, layout)
    return _encode(dense, (words.shape[0],), tile_cols)


def _bytes(words: torch.Tensor) -> torch.Tensor:
    words = words.detach().contiguous()
    if not words.numel():
        return torch.empty(0, dtype=torch.uint8, device=words.device)
    return words.view(torch.uint8).reshape(-1)


def _encode(
    source: Operand, segment_rows: tuple[int, ...], tile_cols: int | None
) -> tuple[torch.Tensor, ...]:
    check_tile_cols(tile_cols)
    tile_cols = tile_cols or usual_tile_cols(source.cols)
    bases = _windows(source, segment_rows)
    plane, listed, ends = torch.ops.codecllm._fixed_of(
        *source, torch.tensor(bases, dtype=torch.int32), tile_cols
    )
    tiles = [ceil_div(n, TILE_ROWS) * ceil_div(source.cols, tile_cols) for n in segment_rows]
    counts = np.diff(_at(ends, np.cumsum(tiles) - 1), prepend=0).tolist()
    segments = tuple(
        Segment(rows, base, listed=n)
        for rows, base, n in zip(segment_rows, bases, counts, strict=True)
    )
    head = Head(_FORMAT, source.rows, source.cols, tile_cols, 0, 0, segments, coding="fixed")
    return assemble(head, plane, listed, ends.flatten(), source.stream.device)


def _windows(source: Operand, segment_rows: tuple[int, ...]) -> list[int]:
    firsts = np.cumsum((0, *segment_rows))
    samples = [sampled_rows(n) + first for n, first in zip(segment_rows, firsts, strict=False)]
    ids = torch.from_numpy(np.concatenate(samples)).to(source.stream.device)
    found = torch.ops.codecllm.decode_rows(ids, *source).split([len(s) for s in samples])
    return [choose_window(words) for words in found]


def _at(ends: torch.Tensor, tiles: np.ndarray) -> np.ndarray:
    """Ends of these tiles, int64; tile -1, and all where there are none: 0."""
    if not ends.numel():
        return np.zeros(len(tiles), np.int64)
    found = ends.flatten()[torch.from_numpy(np.maximum(tiles, 0)).to(ends.device)]
    return np.where(tiles < 0, 0, found.cpu().numpy().astype(np.int64))
