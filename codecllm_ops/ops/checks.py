"""What the ops demand of their arguments: the rule and the value in every message.

Implementations in Python and fakes call these. Compiled kernels are called by the dispatcher
without passing here, and trust nothing: csrc/torch/coded_args.h checks what they rely on.
"""

from __future__ import annotations

import torch

from ..codec.operand import Operand
from ..format.layout_word import Layout
from ..format.scales import expected_scales

ACTIVATIONS = (torch.float32, torch.bfloat16, torch.float16)
_PARTS = Operand._fields[:5]


def same_device(op: str, coded: Operand, **others: torch.Tensor | None) -> None:
    """The parts of the matrix, and all else, are on the device of its stream."""
    home = coded.stream.device
    parts = zip(_PARTS, coded.tensors, strict=True)
    for name, t in (*parts, *others.items()):
        if t is not None and t.device != home:
            raise RuntimeError(
                f"codecllm::{op}: {name} is on {t.device}, the coded matrix on {home}"
            )


def scale_fits(op: str, coded: Operand) -> None:
    """The matrix has as many scales as its layout says, float32."""
    expected = expected_scales(Layout.unpack(coded.layout).scale_kind, coded.rows)
    scale = coded.scale
    if (scale is None) != (expected == 0):
        raise RuntimeError(f"codecllm::{op}: scale missing or not wanted")
    if scale is not None and (scale.dtype != torch.float32 or scale.shape != (expected,)):
        raise RuntimeError(
            f"codecllm::{op}: scale is {scale.dtype} {list(scale.shape)}, "
            f"not torch.float32 [{expected}]"
        )


def ids_fit(ids: torch.Tensor) -> None:
    """Whatever their values: those are the backend's to look at."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"codecllm::decode_rows: ids are {ids.dtype}, not int64 or int32")


def out_fits(coded: Operand, out: torch.Tensor) -> None:
    """`out` has the matrix's shape; any dtype and strides."""
    if out.shape != (coded.rows, coded.cols):
        raise RuntimeError(
            f"codecllm::decode: out is {list(out.shape)}, the matrix {[coded.rows, coded.cols]}"
        )


def product_fits(x: torch.Tensor, coded: Operand, bias: torch.Tensor | None) -> None:
    """x [..., cols] and bias [rows] are of one dtype that activations have."""
    op, rows, cols = "decode_linear", coded.rows, coded.cols
    same_device(op, coded, x=x, bias=bias)
    if x.dtype not in ACTIVATIONS:
        raise RuntimeError(f"codecllm::{op}: x is {x.dtype}, not one of {ACTIVATIONS}")
    if x.dim() < 1 or x.shape[-1] != cols:
        raise RuntimeError(
            f"codecllm::{op}: the last dimension of x must be {cols}: {list(x.shape)}"
        )
    if bias is not None and (bias.dtype != x.dtype or bias.shape != (rows,)):
        raise RuntimeError(
            f"codecllm::{op}: bias is {bias.dtype} {list(bias.shape)}, not {x.dtype} [{rows}]"
        )
    scale_fits(op, coded)
