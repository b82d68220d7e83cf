"""Matrices and backends that the tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import codecllm_ops as ops
from codecllm_ops.format import FORMATS, WeightFormat
from codecllm_ops.ops import registry

WORD_TYPES = {1: np.uint8, 2: np.uint16, 4: np.uint32}
ALL_FORMATS = list(FORMATS.values())
every_format = pytest.mark.parametrize("fmt", ALL_FORMATS, ids=lambda f: f.name)

# Rows, cols: one weight, odd, narrower than a tile, whole tiles, one column, one row.
SHAPES = [(1, 1), (17, 33), (40, 20), (32, 64), (21, 1), (1, 47)]
EMPTY_SHAPES = [(0, 0), (0, 33), (17, 0)]

needs_cpu_kernels = pytest.mark.skipif(not registry.compiled_cpu(), reason="not compiled")


# ---- words and tensors --------------------------------------------------------------------------


def to_tensor(words: np.ndarray, fmt: WeightFormat) -> torch.Tensor:
    """Unsigned words [N, K] as a tensor of the format's dtype, bit for bit."""
    words = np.ascontiguousarray(words, WORD_TYPES[fmt.word_bytes])
    return torch.from_numpy(words).view(fmt.dtype)


def to_words(t: torch.Tensor) -> np.ndarray:
    """The bits of a tensor, as unsigned words of its shape."""
    bits = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32}[t.element_size()]
    return t.detach().cpu().contiguous().view(bits).numpy()


# ---- contents -----------------------------------------------------------------------------------


def weights(rows: int, cols: int, fmt: WeightFormat, seed: int = 0) -> torch.Tensor:
    """Weights as a model has them: normal(0, 0.02); int8 quantised per row."""
    w = 0.02 * torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    return ops.quantize_int8(w)[0] if fmt.dtype == torch.int8 else w.to(fmt.dtype)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_words(rows: int, cols: int, fmt: WeightFormat) -> np.ndarray:
    """Every coded value and every raw bit equally likely: nothing to gain."""
    dtype = WORD_TYPES[fmt.word_bytes]
    return _rng().integers(0, 1 << fmt.word_bits, (rows, cols), dtype=dtype)


def with_coded(words: np.ndarray, values, fmt: WeightFormat) -> np.ndarray:
    """The same words with these coded values (of the flipped word)."""
    shift = fmt.coded_shift + (16 if fmt.word_bits == 32 else 0)
    mask = ((1 << fmt.coded_bits) - 1) << shift
    words = words.astype(np.int64) ^ fmt.flip
    words = words & ~mask | (np.asarray(values, np.int64) << shift & mask)
    return (words ^ fmt.flip).astype(WORD_TYPES[fmt.word_bytes])


def _normal(rows, cols, fmt):
    return to_words(weights(rows, cols, fmt))


def _constant(rows, cols, fmt):
    return np.full((rows, cols), to_words(weights(1, 1, fmt)).item(), WORD_TYPES[fmt.word_bytes])


def _one_symbol(rows, cols, fmt):
    return with_coded(random_words(rows, cols, fmt), (1 << fmt.coded_bits) // 2, fmt)


def _all_ones(rows, cols, fmt):
    """Infinities and NaNs of every payload and sign: a coded value that padding avoids."""
    return with_coded(random_words(rows, cols, fmt), -1, fmt)


def _extremes(rows, cols, fmt):
    """Zeros, subnormals, infinities and NaNs beside ordinary weights."""
    words = _normal(rows, cols, fmt).ravel()
    special = random_words(1, words.size, fmt).ravel()
    special = with_coded(special, _rng(1).choice([0, -1], words.size), fmt)
    where = _rng(2).random(words.size) < 0.2
    words = np.where(where, special, words).astype(words.dtype)
    if words.size:
        words[0] = 1 << (fmt.word_bits - 1)  # -0
    return words.reshape(rows, cols)


def _escapes_at_borders(rows, cols, fmt):
    """Far coded values on the first and last row and column of every 16 x 16 group."""
    words = _normal(rows, cols, fmt)
    r, c = np.indices(words.shape) % 16
    border = (r % 15 == 0) | (c % 15 == 0)
    far = with_coded(words, np.where(r == 0, 0, -1), fmt)
    return np.where(border & (_rng(3).random(words.shape) < 0.5), far, words)


def _ramp(rows, cols, fmt):
    """Coded values that grow by one from column to column: what predictor `left` is for."""
    return with_coded(random_words(rows, cols, fmt), np.arange(cols), fmt)


CONTENTS: dict[str, Callable[[int, int, WeightFormat], np.ndarray]] = {
    "normal": _normal,
    "constant": _constant,
    "one_symbol": _one_symbol,
    "all_ones": _all_ones,
    "extremes": _extremes,
    "escapes_at_borders": _escapes_at_borders,
    "ramp": _ramp,
    "uniform": random_words,
}
every_content = pytest.mark.parametrize("content", CONTENTS)


def all_patterns(fmt: WeightFormat) -> np.ndarray:
    """Every bit pattern of a word (of 32 bits: every high half, with a random low half)."""
    n = 1 << min(fmt.word_bits, 16)
    words = _rng().permutation(n).reshape(n >> 4 if n == 256 else 256, -1)
    if fmt.word_bits == 32:
        words = words << 16 | _rng(1).integers(0, 1 << 16, words.shape)
    return words.astype(WORD_TYPES[fmt.word_bytes])


# ---- backends -----------------------------------------------------------------------------------

ISAS = ops.backend_info().get("cpu_isas", [])
# In a process of its own, for it is slow: Triton's interpreter (tests/triton_kernels).
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["triton"] if INTERPRETING else [*ISAS, "reference"]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


@contextmanager
def running(backend: str) -> Iterator[None]:
    """The ops run on this backend: an instruction set of the CPU kernels, pure torch, or
    Triton's kernels in its interpreter."""
    if backend in ("reference", "triton"):
        before = ops.use_backend(backend)
        checked = ops.set_check(True) if backend == "triton" else None
        try:
            yield
        finally:
            if checked is not None:
                ops.set_check(checked)
            ops.use_backend(before)
        return
    ops.select_cpu_isa(backend)
    try:
        yield
    finally:
        ops.select_cpu_isa()
