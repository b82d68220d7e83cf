"""The ops on a CodedMatrix instead of its parts."""

from __future__ import annotations

import torch

from ..codec.coded import CodedMatrix
from ..codec.operand import Operand
from ..format.errors import typed
from . import calls


def encode(
    weight: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    format: str | None = None,
    tile_cols: int | None = None,
    scale_bits: int = 11,
    predictor: str = "none",
    allow_stored: bool = True,
    coding: str = "rans",
) -> CodedMatrix:
    """Encodes a matrix without loss.

    Args:
        weight: [N, K], bfloat16, float16, float32, float8_e4m3fn, float8_e5m2 or int8, any device;
            the dtype picks the weight format.
        scale: int8 only: float32 [1] or [N], the factor of the tensor or of each row.
        format: name of the weight format, where several code this dtype.
        tile_cols: columns per tile, a multiple of 16; None: about 512, for 8-bit
            words 1024.
        scale_bits: 8 to 11; slot tables have 2^scale_bits entries.
        predictor: "none", "left", or "auto": whichever is smaller.
        allow_stored: keep the words uncoded if coding does not shrink them.
        coding: "rans", the smallest, or "fixed", 12 bits and fast: bfloat16 only; of the options
            above it takes tile_cols (a multiple of 64 near 512, at most 4096) and allow_stored.

    Returns:
        The coded matrix, on the weight's device.

    Raises:
        UnsupportedFormatError: no weight format has this dtype, or `format` has another one, or
            the coding does not exist for it.
        ValueError: not a matrix, a parameter out of range, a scale that is not finite, or a tensor
            on the meta device.
    """
    if weight.is_meta:
        raise ValueError("encode: a tensor on the meta device has no values to encode")
    with torch.inference_mode(False):  # autograd could not save inference tensors
        tensors = torch.ops.codecllm.encode(
            weight,
            scale,
            format=format,
            tile_cols=tile_cols,
            scale_bits=scale_bits,
            predictor=predictor,
            allow_stored=allow_stored,
            coding=coding,
        )
    coded = CodedMatrix(*tensors)
    # A fake head has no bytes to build from.
    return coded.prepare() if type(coded.head) is torch.Tensor else coded


def decode(
    coded: CodedMatrix, dtype: torch.dtype | None = None, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Decodes to [N, K] on the coded matrix's device.

    Args:
        dtype: None gives the coded dtype, bit for bit; else scaled (int8) in float32 and cast.
        out: [N, K], filled and returned; its dtype decides as `dtype` does. Contiguous and of the
            coded dtype it is decoded into; else a dense copy of the coded dtype exists meanwhile.

    Raises:
        RuntimeError: `out` has another shape or device.
        CorruptStreamError: the streams are corrupt, as far as decoding notices.
    """
    if out is None:
        return calls.decode(_operand(coded), dtype)
    if dtype not in (None, out.dtype):
        raise ValueError(f"decode: dtype={dtype}, but `out` is {out.dtype}")
    try:
        torch.ops.codecllm.decode.out(*_operand(coded), out=out)
    except RuntimeError as error:
        raise typed(error) from None
    return out


def decode_linear(
    x: torch.Tensor, coded: CodedMatrix, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """x @ decode(coded)^T + bias without the dense weight in memory.

    Args:
        x: [..., K], float32, bfloat16 or float16, on the coded matrix's device.
        bias: [N] of x's dtype.

    Returns:
        [..., N] of x's dtype, accumulated in float32.
    """
    return calls.linear(x, _operand(coded), bias)


def decode_rows(
    ids: torch.Tensor, coded: CodedMatrix, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Rows `ids` (int64 or int32, any shape) of the matrix: [*ids.shape, K]. See decode."""
    return calls.rows(ids, _operand(coded), dtype)


def quantize_int8(weight: torch.Tensor, per: str = "row") -> tuple[torch.Tensor, torch.Tensor]:
    """Absmax quantisation: weight [N, K] of any float dtype ~ q * scale.

    Args:
        per: "row" or "tensor".

    Returns:
        q: int8 [N, K] in -127..127, rounded to nearest even; scale: float32 [N] or [1].

    Raises:
        ValueError: a weight that is not finite has no int8 value.
    """
    if per not in ("row", "tensor"):
        raise ValueError(f"quantize_int8: per={per!r} is not 'row' or 'tensor'")
    w = weight.detach().to(torch.float32)
    if not torch.isfinite(w).all():
        raise ValueError("quantize_int8: the weight has NaN or infinite values")
    if per == "row":
        absmax = w.abs().amax(dim=1) if w.shape[1] else w.new_zeros(w.shape[0])
    else:
        absmax = w.abs().amax().reshape(1) if w.numel() else w.new_zeros(1)
    scale = torch.where(absmax > 0, absmax / 127, torch.ones_like(absmax))
    q = torch.round(w / (scale[:, None] if per == "row" else scale)).clamp_(-127, 127)
    return q.to(torch.int8), scale


def _operand(c: CodedMatrix) -> Operand:
    if torch.compiler.is_compiling() and not c.prepared:
        raise RuntimeError("codecllm: call prepare() on a CodedMatrix before it is compiled")
    return c.operand
