"""decode_linear against F.linear, for each coding and number of rows of x.

Nothing is timed that has not been compared first: every coded matrix decodes to the bits of its
weight, and products are as near to the exact ones as sums in float32 must be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

import codecllm_ops
from codecllm_ops import CodedMatrix
from codecllm_ops.format import UnsupportedFormatError

from ..model.skeleton import resident_bytes
from .timing import DENSE, Effort, Ratio, Times, in_turns
from .weights import Group

_CHECKED_ROWS = 3  # of x
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class WrongResultError(RuntimeError):
    """A kernel's result is not what it must be; its speed is of no interest."""


@dataclass(frozen=True)
class LinearResult:
    """One shape and one number of rows of x.

    Attributes:
        shape: [N, K]; layers: how many of the model's have it.
        batch: rows of x.
        seconds: of one product, by side: "dense" is F.linear.
        speed: of each coding relative to F.linear.
        bits_per_weight: in memory, tables included.
    """

    shape: tuple[int, int]
    layers: int
    batch: int
    rounds: int
    seconds: dict[str, float]
    speed: dict[str, Ratio]
    bits_per_weight: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "layers": self.layers,
            "batch": self.batch,
            "rounds": self.rounds,
            "ms": {side: round(1e3 * s, 4) for side, s in self.seconds.items()},
            "of_linear_speed": {side: r.to_dict() for side, r in self.speed.items()},
            "bits_per_weight": {k: round(v, 4) for k, v in self.bits_per_weight.items()},
        }


@torch.inference_mode()
def measure_group(
    group: Group,
    batches: Iterable[int],
    codings: Iterable[str],
    effort: Effort,
    absent: dict[str, str],
) -> Iterator[LinearResult]:
    """Measures one shape.

    Args:
        absent: gets why a coding does not exist for these weights, by coding.

    Raises:
        WrongResultError: names the coding and what is wrong.
    """
    coded: dict[str, list[CodedMatrix]] = {}
    for coding in codings:
        try:
            coded[coding] = [_encoded(w, coding) for w in group.weights]
        except UnsupportedFormatError as error:
            absent[coding] = str(error)
    bits = {
        c: 8 * sum(map(resident_bytes, ms)) / sum(w.numel() for w in group.weights)
        for c, ms in coded.items()
    }
    # Of weights that no GEMM takes (fp8), products are those of bfloat16, as the model's are.
    dtype = group.weights[0].dtype if group.weights[0].element_size() > 1 else torch.bfloat16
    dense = [w.to(dtype) for w in group.weights]
    count = len(dense)
    for batch in batches:
        times = _measure(dense, coded, batch, effort)
        yield LinearResult(
            group.shape,
            group.layers,
            batch,
            times.rounds,
            {side: times.median(side) / count for side in times.seconds},
            {coding: times.speed(coding, DENSE) for coding in coded},
            bits,
        )


def _encoded(weight: torch.Tensor, coding: str) -> CodedMatrix:
    coded = codecllm_ops.encode(weight, coding=coding)
    if coded.coding != coding:
        raise UnsupportedFormatError(f"{coding} does not shrink {list(weight.shape)} weights")
    bits = _BITS[weight.element_size()]
    if not torch.equal(codecllm_ops.decode(coded).view(bits), weight.view(bits)):
        raise WrongResultError(f"{coding}: a matrix of {list(weight.shape)} decodes to other bits")
    return coded


def _measure(
    dense: list[torch.Tensor], coded: dict[str, list[CodedMatrix]], batch: int, effort: Effort
) -> Times:
    x = torch.randn(batch, dense[0].shape[1]).to(dense[0].dtype)
    for coding, matrices in coded.items():
        _check(x, dense[0], codecllm_ops.decode_linear(x, matrices[0]), coding)

    def library() -> None:
        for w in dense:
            F.linear(x, w)

    def ours(matrices: list[CodedMatrix]) -> None:
        for coded in matrices:
            codecllm_ops.decode_linear(x, coded)

    calls: dict[str, Callable[[], object]] = {DENSE: library}
    calls |= {coding: partial(ours, matrices) for coding, matrices in coded.items()}
    return in_turns(calls, effort)


def _check(x: torch.Tensor, weight: torch.Tensor, found: torch.Tensor, coding: str) -> None:
    """Raises WrongResultError unless rows of x @ weight^T are what float32 sums may give."""
    if found.shape != (len(x), len(weight)):
        raise WrongResultError(f"{coding}: a product of shape {list(found.shape)}")
    rows = torch.linspace(0, len(x) - 1, min(len(x), _CHECKED_ROWS)).long()
    exact_x, cols = x[rows].double(), x.shape[1]
    for begin in range(0, len(weight), 4096):  # a double is four bfloat16
        w = weight[begin : begin + 4096].double()
        exact = exact_x @ w.T
        # A unit in the last place of the result, and float32 sums of `cols` products.
        bound = exact.abs() * torch.finfo(x.dtype).eps
        bound += exact_x.abs() @ w.abs().T * cols * torch.finfo(torch.float32).eps
        error = (found[rows, begin : begin + 4096].double() - exact).abs()
        if not (error <= bound).all():
            raise WrongResultError(
                f"{coding}: {len(x)} rows of x times {list(weight.shape)} are wrong by up to "
                f"{error.max():.3g}"
            )
