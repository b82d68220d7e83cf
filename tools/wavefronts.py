"""Shared-memory wavefronts of the fused CUDA loop, on the access pattern of a real coded matrix.

Shared memory serves 32 banks of 4 bytes in a clock; lanes that want different words of one bank
wait for each other: an access takes as many wavefronts as the busiest bank has different words. The
simulation walks through tiles as csrc/cuda/rans/lane.cuh does: in every step each lane looks up a
slot of the table, and lanes that refill their state fetch the word after the one they take in.

    python tools/wavefronts.py [rows cols]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from codecllm_ops.codec.coded import CodedMatrix
from codecllm_ops.codec.rans.index import read_index
from codecllm_ops.codec.rans.tables import runtime_table

LANES, BANKS = 32, 32
_RANS_L = 1 << 16


def wavefronts(addresses: np.ndarray) -> int:
    """Wavefronts of one access of 4 bytes or less; addresses in bytes, of the active lanes."""
    words = np.unique(addresses // 4)
    return int(np.bincount(words % BANKS, minlength=1).max()) if words.size else 0


@dataclass(frozen=True)
class Count:
    """Wavefronts per weight.

    Attributes:
        table: of slot lookups.
        words: of fetches of stream words.
        x: of the fragments of x (16 bytes a lane for two groups; up to 8 rows of x).
    """

    table: float
    words: float
    x: float

    @property
    def total(self) -> float:
        return self.table + self.words + self.x


def simulate(coded: CodedMatrix, copies: int, tiles: int = 4, x_rows: int = 1) -> Count:
    """Walks through the first tiles of a matrix coded without predictor.

    Args:
        copies: tables side by side in shared memory.
        x_rows: rows of x, 1 to 8.
    """
    head = coded.info
    table = runtime_table(head).view(np.uint32)
    starts, lengths, segments = read_index(coded.index.numpy(), head.len_bits)
    stream = coded.stream.numpy().view(np.uint16)
    mask = (1 << head.scale_bits) - 1
    lane_copy = np.arange(LANES) % copies
    in_table = in_words = weights = groups_seen = 0
    for tile in range(min(tiles, len(starts))):
        slots = table[segments[tile], 8:]
        first = int(starts[tile]) // 2
        begin = np.concatenate([[0], np.cumsum(lengths[tile])[:-1]]).astype(np.int64)
        state = stream[first + begin].astype(np.uint64)
        state |= stream[first + begin + 1].astype(np.uint64) << np.uint64(16)
        at = begin + 2  # of the word that was fetched ahead
        col_tiles = -(-head.cols // head.tile_cols)
        left = head.cols - tile % col_tiles * head.tile_cols
        groups = -(-min(left, head.tile_cols) // 16)
        for _ in range(groups):
            escapes = np.zeros(LANES, np.int64)
            for _ in range(4):
                slot = (state & np.uint64(mask)).astype(np.int64)
                in_table += wavefronts(4 * (slot * copies + lane_copy))
                entry = slots[slot].astype(np.uint64)
                state = (entry >> np.uint64(16) & np.uint64(0x7FF)) * (
                    state >> np.uint64(head.scale_bits)
                ) + (entry & np.uint64(0x7FF))
                escapes += entry >> np.uint64(27) == 31
                small = state < _RANS_L
                words = stream[first + np.minimum(at, at.max())].astype(np.uint64)
                state = np.where(small, state << np.uint64(16) | words, state)
                at = at + small
                in_words += wavefronts(2 * at[small])
            while (some := escapes > 0).any():
                at = at + some
                escapes -= some
                in_words += wavefronts(2 * at[some])
        assert (state == _RANS_L).all(), "the walk does not end as the encoder began"
        weights += groups * 256
        groups_seen += groups
    # 4 columns of lanes times the rows of x, 16 bytes each, in quarter warps of 128 bytes.
    x = max(1.0, 4 * 16 * x_rows / 128) * groups_seen / 2
    return Count(in_table / weights, in_words / weights, x / weights)


def main() -> None:
    import torch

    import codecllm_ops as ops

    rows, cols = (int(v) for v in sys.argv[1:3]) if len(sys.argv) > 2 else (64, 4096)
    w = (0.02 * torch.randn(rows, cols)).bfloat16()
    print("scale_bits copies  KB   table  words  x      wavefronts per weight")
    for scale_bits in (9, 10, 11):
        coded = ops.encode(w, scale_bits=scale_bits)
        for copies in (1, 2, 4, 8, 16):
            c = simulate(coded, copies)
            kib = 4 * copies << scale_bits >> 10
            print(
                f"{scale_bits:10} {copies:6} {kib:3}   {c.table:.4f} {c.words:.4f} {c.x:.4f} "
                f"{c.total:.4f}"
            )


if __name__ == "__main__":
    main()
