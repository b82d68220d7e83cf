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


def test_plans_for_an_h200_are_the_budgeted_ones():
    """Rows enough for every processor: as many copies as the budget counts on."""
    w = weights(16 * 132, 256, FORMATS["bf16"])
    for scale_bits, expected in ((11, 8), (10, 16)):
        coded = ops.encode(w, scale_bits=scale_bits, tile_cols=64)
        assert emulated.plan(coded, 1, torch.bfloat16, H200).copies == expected


def test_an_access_takes_the_busiest_banks_words():
    assert wavefronts.wavefronts(4 * np.arange(32)) == 1
    assert wavefronts.wavefronts(np.zeros(32, int)) == 1  # the same word: broadcast
    assert wavefronts.wavefronts(128 * np.arange(32)) == 32
    assert wavefronts.wavefronts(2 * np.arange(32)) == 1  # two lanes in one word
    assert wavefronts.wavefronts(np.array([0, 128, 4])) == 2
    assert wavefronts.wavefronts(np.array([], int)) == 0
