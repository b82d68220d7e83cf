"""Plans a tensor's coding (window, pairs, frequencies) and hands the work to a backend."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from ...format import scales
from ...format.geometry import MAX_TILE_COLS, default_tile_cols
from ...format.head import MAX_SCALE_BITS, MIN_SCALE_BITS, PREDICTORS, Head
from ...format.segments import MAX_INDEX, Segment
from ...format.weight_formats import WeightFormat, choose
from ..coded import CodedMatrix
from ..stored import head_of
from .index import len_bits_of, sizes_of, write_index
from .tables import choose_window, padding_value, plan_segment


class EncoderKernels(Protocol):
    """What a backend does; `data` is uint8 [N, K * word bytes] on the CPU."""

    def count_values(self, data: torch.Tensor, cols: int, format_id: int) -> torch.Tensor: ...

    def count_pairs(
        self, data: torch.Tensor, cols: int, format_id: int, tile_cols: int, predictor: int,
        pad_value: int,
    ) -> torch.Tensor: ...  # fmt: skip

    def encode_tiles(
        self, data: torch.Tensor, pairs: torch.Tensor, freqs: torch.Tensor, cols: int,
        format_id: int, tile_cols: int, predictor: int, pad_value: int, window_base: int,
        scale_bits: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]: ...  # fmt: skip


def check_options(tile_cols: int | None, scale_bits: int, predictor: str) -> None:
    """Raises ValueError for an option out of range: before a tensor is read, and by name."""
    if predictor not in (*PREDICTORS, "auto"):
        known = ", ".join((*PREDICTORS, "auto"))
        raise ValueError(f"encode: predictor {predictor!r} is not one of {known}")
    if tile_cols is not None and (tile_cols % 16 or not 16 <= tile_cols <= MAX_TILE_COLS):
        raise ValueError(
            f"encode: tile_cols {tile_cols} is not a multiple of 16 from 16 to {MAX_TILE_COLS}"
        )
    if not MIN_SCALE_BITS <= scale_bits <= MAX_SCALE_BITS:
        raise ValueError(
            f"encode: scale_bits {scale_bits} outside {MIN_SCALE_BITS}..{MAX_SCALE_BITS}"
        )


def encode(
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    kernels: EncoderKernels,
    *,
    format: str | None = None,
    tile_cols: int | None,
    scale_bits: int,
    predictor: str,
    allow_stored: bool,
) -> CodedMatrix:
    """Encodes a matrix [N, K]; see codecllm_ops.encode."""
    if weight.dim() != 2:
        raise ValueError(f"encode: weight has shape {list(weight.shape)}, a matrix [N, K] is coded")
    check_options(tile_cols, scale_bits, predictor)
    fmt = choose(format, weight.dtype)
    rows, cols = weight.shape
    tile_cols = default_tile_cols(cols, fmt) if tile_cols is None else int(tile_cols)
    scales.check(fmt, scale, rows)
    scale_np = None if scale is None else scale.detach().cpu().numpy().copy()
    scale_kind = scales.kind_of(scale)
    data = _bytes_of(weight, fmt)
    values = kernels.count_values(data, cols, fmt.id)[: 1 << fmt.coded_bits].numpy()
    pad_value = padding_value(values, fmt)

    plans = []
    for p in range(2) if predictor == "auto" else (PREDICTORS.index(predictor),):
        pairs = kernels.count_pairs(data, cols, fmt.id, tile_cols, p, pad_value).numpy()
        base, counts = window_counts(pairs, fmt)
        segment, bits = plan_segment(counts, rows, base, pad_value, scale_bits)
        plans.append((bits, p, segment))
    _, p, segment = min(plans, key=lambda plan: plan[0])

    stream, raw, lengths = kernels.encode_tiles(
        data, torch.from_numpy(segment.pairs), torch.from_numpy(segment.freqs), cols, fmt.id,
        tile_cols, p, pad_value, segment.window_base, scale_bits,
    )  # fmt: skip
    coded = _assemble(
        fmt, rows, cols, tile_cols, scale_bits, p, segment, scale_np, scale_kind, stream, raw,
        lengths.numpy(), weight.device,
    )  # fmt: skip
    head = head_of(fmt, rows, cols, scale_np, scale_kind)
    if allow_stored and coded.nbytes >= data.numel() + len(head.pack()):
        words = data.reshape(-1).clone()  # `data` may be the weight's own memory
        coded = CodedMatrix.build(head, words, b"", np.zeros(0, np.int32), weight.device)
    return coded


def _assemble(fmt, rows, cols, tile_cols, scale_bits, predictor, segment: Segment, scale,
              scale_kind, stream, raw, lengths: np.ndarray, device) -> CodedMatrix:  # fmt: skip
    len_bits = len_bits_of(lengths)
    sizes = sizes_of(lengths)
    index = write_index(np.cumsum(sizes) - sizes, lengths, np.zeros(len(lengths), int), len_bits)
    head = Head(
        fmt, rows, cols, tile_cols, scale_bits, len_bits, (segment,), predictor, scale=scale,
        scale_kind=scale_kind,
    )  # fmt: skip
    return CodedMatrix.build(head, stream, raw, index, device)


def window_counts(pair_counts: np.ndarray, fmt: WeightFormat) -> tuple[int, np.ndarray]:
    """Window base, and counts [1024] by 32 * i0 + i1, from counts [65536] by r0 + 256 * r1."""
    grid = pair_counts.reshape(256, 256).T  # [r0, r1]
    values = (grid.sum(axis=1) + grid.sum(axis=0))[: 1 << fmt.coded_bits]
    base = choose_window(values)
    window = np.full(256, MAX_INDEX + 1)
    inside = np.arange(base, min(base + MAX_INDEX + 1, 256))
    window[inside] = inside - base
    r0, r1 = np.nonzero(grid)
    counts = np.zeros(1024, np.int64)
    np.add.at(counts, 32 * window[r0] + window[r1], grid[r0, r1])
    return base, counts


def _bytes_of(weight: torch.Tensor, fmt: WeightFormat) -> torch.Tensor:
    data = weight.detach().cpu().contiguous()
    if not data.numel():
        return torch.empty((data.shape[0], data.shape[1] * fmt.word_bytes), dtype=torch.uint8)
    return data.view(torch.uint8)
