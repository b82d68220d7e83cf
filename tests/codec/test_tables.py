"""Windows, frequencies and slot tables: from counts to what kernels look up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import ALL_FORMATS
from codecllm_ops.codec.rans.index import read_index, write_index
from codecllm_ops.codec.rans.tables import (
    TABLE_HEADER,
    choose_window,
    normalise,
    padding_value,
    plan_segment,
    runtime_table,
    slot_table,
)
from codecllm_ops.format import FORMATS, Head, Segment
from codecllm_ops.format.head import ESCAPE
from codecllm_ops.format.segments import MAX_INDEX

counts = st.lists(st.floats(0.5, 1e9), min_size=1, max_size=256)


def cost(counts, freqs, scale_bits) -> float:
    return float(-(counts * np.log2(freqs / (1 << scale_bits))).sum())


@given(counts, st.integers(8, 11))
def test_frequencies_are_positive_and_fill_the_slots(counts, scale_bits):
    freqs = normalise(np.array(counts), scale_bits)
    assert freqs.min() >= 1 and freqs.sum() == 1 << scale_bits


@given(counts, st.integers(9, 11))
def test_frequencies_cost_at_most_the_rounding(counts, scale_bits):
    counts = np.array(counts)
    freqs = normalise(counts, scale_bits)
    # n symbols of one slot each at least: with total' = total - n slots to share freely, the
    # entropy's own shares are met within log2(total / total').
    share = np.maximum(counts / counts.sum(), 1e-300)
    entropy = float(-(counts * np.log2(share)).sum())
    total = 1 << scale_bits
    allowed = counts.sum() * np.log2(total / (total - len(counts)))
    assert entropy - 1e-6 * entropy <= cost(counts, freqs, scale_bits) <= entropy + allowed + 1e-6


@given(st.lists(st.integers(1, 10**6), min_size=3, max_size=3))
def test_frequencies_are_nearly_the_best_there_are(counts):
    counts = np.array(counts, np.float64)
    a, b = np.indices((256, 256)).reshape(2, -1)
    every = np.stack([a, b, 256 - a - b])
    every = every[:, (every > 0).all(axis=0)]
    best = -(counts @ np.log2(every / 256)).max()
    assert best - 1e-3 <= cost(counts, normalise(counts, 8), 8) <= best + 1e-3 * counts.sum()


@given(st.lists(st.integers(0, 1000), min_size=32, max_size=256))
def test_window_holds_as_much_as_any(values):
    values = np.array(values)
    base = choose_window(values)
    inside = [values[b : b + MAX_INDEX + 1].sum() for b in range(len(values) - MAX_INDEX)]
    assert values[base : base + MAX_INDEX + 1].sum() == max(inside)


@pytest.mark.parametrize("size", [16, 31])
def test_small_alphabet_is_all_window(size):
    assert choose_window(np.ones(size, np.int64)) == 0


@pytest.mark.parametrize("fmt", ALL_FORMATS, ids=lambda f: f.name)
def test_padding_is_never_all_ones(fmt):
    n = 1 << fmt.coded_bits
    assert padding_value(np.eye(n, dtype=np.int64)[n - 1] * 5, fmt) < n - 1
    assert padding_value(np.eye(n, dtype=np.int64)[3] * 5, fmt) == 3


@st.composite
def planned(draw):
    cells = st.tuples(st.integers(0, 1023), st.integers(1, 10**6))
    pair_counts = np.zeros(1024, np.int64)
    for cell, n in draw(st.lists(cells, max_size=60)):
        pair_counts[cell] = n
    return pair_counts, draw(st.integers(8, 11))


@given(planned())
def test_planned_table_fits_its_slots_and_leaves_one_for_the_escape(case):
    pair_counts, scale_bits = case
    segment, bits = plan_segment(pair_counts, 16, 0, 0, scale_bits)
    assert (np.diff(segment.pairs) > 0).all() and len(segment.pairs) >= 1
    assert (segment.pairs // 32 <= MAX_INDEX).all() and (segment.pairs % 32 <= MAX_INDEX).all()
    assert segment.freqs.min() >= 1 and segment.freqs.sum() < 1 << scale_bits
    in_table = pair_counts[segment.pairs]
    escaped = pair_counts.sum() - in_table.sum()
    left = (1 << scale_bits) - segment.freqs.sum()
    expected = cost(in_table, segment.freqs, scale_bits)
    expected += escaped * (16 - np.log2(left / (1 << scale_bits))) + 17 * len(in_table)
    assert bits == pytest.approx(expected, rel=1e-6, abs=12)  # an absent escape counts as half


@given(planned())
def test_every_slot_leads_to_its_symbol(case):
    pair_counts, scale_bits = case
    segment, _ = plan_segment(pair_counts, 16, 0, 0, scale_bits)
    table = slot_table(segment, scale_bits).astype(np.int64)
    ids, freqs, bias = table >> 11 & 31, table >> 16 & 0x7FF, table & 0x7FF
    ids = 32 * ids + (table >> 27)
    start = 0
    escape = (1 << scale_bits) - int(segment.freqs.sum())
    symbols = [*zip(segment.pairs, segment.freqs, strict=True), (ESCAPE, escape)]
    for symbol, freq in symbols:
        slots = slice(start, start + freq)
        assert (ids[slots] == symbol).all() and (freqs[slots] == freq).all()
        assert (bias[slots] == np.arange(freq)).all()
        start += freq
    assert start == len(table)


def test_runtime_table_says_where_each_segment_begins():
    parts = [
        Segment(r, b, np.array([0]), np.array([1]), b + 1) for r, b in ((17, 3), (0, 5), (16, 7))
    ]
    head = Head(FORMATS["bf16"], 33, 16, 16, 8, 4, tuple(parts))
    table = runtime_table(head)
    assert table.shape == (3, TABLE_HEADER + 256)
    assert table[:, :TABLE_HEADER].tolist() == [
        [3, 4, 0, 17, 0, 0, 0, 0],
        [5, 6, 17, 0, 2, 0, 0, 0],
        [7, 8, 17, 16, 2, 0, 0, 0],
    ]


@given(st.integers(1, 16), st.lists(st.integers(0, 2**32 - 1), max_size=5), st.data())
def test_index_is_read_as_written_beyond_four_gib(len_bits, offsets, data):
    n = len(offsets)
    starts = np.array(offsets, np.int64) * 16
    low = data.draw(st.integers(0, 0xFFFF), label="shortest")
    delta = st.integers(0, (1 << len_bits) - 1)
    lengths = data.draw(st.lists(delta, min_size=32 * n, max_size=32 * n), label="lengths")
    lengths = low + np.array(lengths, np.int64).reshape(n, 32)
    segments = np.array(
        data.draw(st.lists(st.integers(0, 65535), min_size=n, max_size=n)), np.int64
    )
    if n:
        lengths[:, 0] = low  # the shortest is stored, the others relative to it
    index = write_index(starts, lengths, segments, len_bits)
    assert index.dtype == np.int32 and index.size == n * (2 + len_bits)
    for found, written in zip(
        read_index(index, len_bits), (starts, lengths, segments), strict=True
    ):
        assert np.array_equal(found, written)
