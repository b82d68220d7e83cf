"""What coding costs, argued from entropy: information + rounding of the table + overhead."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import codecllm_ops as ops
from cases import every_format, to_words, weights
from codecllm_ops.format import FORMATS
from codecllm_ops.format.head import ESCAPE


def entropy(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts / values.size * np.log2(counts / values.size)).sum())


def coded_values(w: torch.Tensor, fmt) -> np.ndarray:
    words = to_words(w).astype(np.int64) ^ fmt.flip
    shift = fmt.coded_shift + (16 if fmt.word_bits == 32 else 0)
    return words >> shift & ((1 << fmt.coded_bits) - 1)


def information(values: np.ndarray, coded) -> float:
    """Bits that the pairs of a matrix without padding have under the head's table."""
    (segment,) = coded.info.segments
    total = 1 << coded.info.scale_bits
    freq = np.zeros(1024)
    freq[segment.pairs] = segment.freqs
    i = values - segment.window_base
    i[(i < 0) | (i > 30)] = 31
    pair = 32 * i[:, ::2] + i[:, 1::2]
    pair = np.where((i[:, ::2] == 31) | (i[:, 1::2] == 31) | (freq[pair] == 0), ESCAPE, pair)
    freq[ESCAPE] = total - segment.freqs.sum()
    return float(-np.log2(freq[pair] / total).sum() + 16 * (pair == ESCAPE).sum())


@every_format
def test_coded_plane_is_its_information_plus_the_states(fmt):
    w = weights(512, 1024, fmt)
    coded = ops.encode(w, allow_stored=False)
    bits = information(coded_values(w, fmt), coded)
    # Every lane's two words of state hold 0 to 16 bits of it; tiles end at multiples of 16 bytes.
    # An integer quotient loses at most freq / x of a symbol's interval, on average far less.
    states = coded.info.grid.tiles * 32 * 32
    padding = coded.info.grid.tiles * 128 + 128
    rounding = 0.002 * w.numel()
    assert bits < 8 * coded.stream.numel() <= bits + states + padding + rounding


def overhead(coded) -> float:
    """States, index and head, in bits per weight."""
    grid = coded.info.grid
    per_tile = 32 * 32 + 128 + 32 * (2 + coded.info.len_bits)
    return (grid.tiles * per_tile + 128 + 8 * coded.head.numel()) / (grid.rows * grid.cols)


def test_bf16_rate_is_entropy_of_the_exponent_plus_eight_plus_overhead():
    fmt = FORMATS["bf16"]
    w = weights(1024, 1024, fmt)
    coded = ops.encode(w)
    h = entropy(coded_values(w, fmt))
    # 2^11 slots for pairs instead of exact probabilities: 0.03 bits on these weights.
    assert h + 8 < 8 * coded.nbytes / w.numel() <= h + 8 + 0.03 + overhead(coded)
    assert overhead(coded) < 0.17


def test_bf16_rate_of_a_layer():
    w = weights(4096, 4096, FORMATS["bf16"])
    assert 8 * ops.encode(w).nbytes / w.numel() <= 10.70


def test_int8_rate_is_entropy_of_the_high_nibble_plus_four_plus_overhead():
    fmt = FORMATS["int8"]
    w = weights(1024, 1024, fmt)
    coded = ops.encode(w, scale=torch.ones(1024))
    h = entropy(coded_values(w, fmt))
    assert h + 4 < 8 * coded.nbytes / w.numel() <= h + 4 + 0.01 + overhead(coded)


def test_int8_rate_of_a_layer_is_near_its_order_0_entropy():
    w = weights(4096, 4096, FORMATS["int8"])
    rate = 8 * ops.encode(w, scale=torch.ones(4096)).nbytes / w.numel()
    assert rate <= 1.015 * entropy(to_words(w))


@pytest.mark.parametrize("scale_bits", [8, 9, 10])
def test_smaller_tables_cost_rate_only(scale_bits):
    w = weights(512, 1024, FORMATS["bf16"])
    small, full = ops.encode(w, scale_bits=scale_bits), ops.encode(w)
    assert full.nbytes < small.nbytes < 1.06 * full.nbytes
