"""Shared-memory wavefronts of the fused loop, simulated on real streams, against the budget."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import codecllm_ops as ops
from cases import FORMATS, weights
from cuda import emulated

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import wavefronts

BUDGET = json.loads(Path(__file__).with_name("budget.json").read_text())
H200 = emulated.Device(90, 132, 232448, 233472)


@pytest.mark.parametrize("case", BUDGET["shared-memory wavefronts per weight"])
def test_wavefronts_per_weight(case):
    scale_bits, copies = (int(word) for word in case.replace(",", "").split() if word.isdigit())
    coded = ops.encode(weights(256, 4096, FORMATS["bf16"]), scale_bits=scale_bits)
    measured = wavefronts.simulate(coded, copies, tiles=12).total
    assert measured <= BUDGET["shared-memory wavefronts per weight"][case], measured


LLAMA = [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336), (8192, 8192), (28672, 8192)]


@pytest.mark.parametrize("shape", LLAMA, ids=str)
def test_plans_for_an_h200_are_the_budgeted_ones(shape):
    """The default table in 16 copies, for any shape that matters, at batch 1."""
    view, _table = view_of_size(*shape)
    assert emulated.plan_of(view, 1, torch.bfloat16, H200).copies == 16


def view_of_size(rows: int, cols: int):
    """What the kernels would see of a large matrix; its planes are not there."""
    view, table = emulated.view_of(ops.encode(weights(16, cols, FORMATS["bf16"])))
    view.rows, view.tile_rows = rows, rows // 16
    view.stream_bytes *= view.tile_rows
    return view, table


def test_an_access_takes_the_busiest_banks_words():
    assert wavefronts.wavefronts(4 * np.arange(32)) == 1
    assert wavefronts.wavefronts(np.zeros(32, int)) == 1  # the same word: broadcast
    assert wavefronts.wavefronts(128 * np.arange(32)) == 32
    assert wavefronts.wavefronts(2 * np.arange(32)) == 1  # two lanes in one word
    assert wavefronts.wavefronts(np.array([0, 128, 4])) == 2
    assert wavefronts.wavefronts(np.array([], int)) == 0
