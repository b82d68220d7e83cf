"""Implementations, fakes, autograd and FLOP formulas of the public ops."""

from __future__ import annotations

import math
import warnings

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.library import Library, get_ctx, register_fake, register_vmap
from torch.utils.flop_counter import register_flop_formula

from ..codec import encoder
from ..codec.coded import SCALE_KIND_SHIFT, STORED_BIT
from ..format.head import NO_SCALE, ROW_SCALE
from ..format.weight_formats import by_id
from .registry import backend_for, backend_for_encoding, on_change, overridden
from .schema import LIBRARY

_SCALED_AT_ONCE = 1 << 24  # weights
ACTIVATIONS = (torch.float32, torch.bfloat16, torch.float16)


def _same_device(op: str, stream: torch.Tensor, **others) -> None:
    for name, t in others.items():
        if t is not None and t.device != stream.device:
            raise RuntimeError(
                f"codecllm::{op}: {name} is on {t.device}, the coded matrix on {stream.device}"
            )


def _check_scale(op: str, scale: torch.Tensor | None, rows: int, layout: int) -> None:
    """What csrc/torch/ops_cpu.cpp checks as well."""
    kind = layout >> SCALE_KIND_SHIFT & 3
    if (scale is None) != (kind == NO_SCALE):
        raise RuntimeError(f"codecllm::{op}: scale missing or not wanted")
    n = rows if kind == ROW_SCALE else 1
    if scale is not None and (scale.dtype != torch.float32 or scale.shape != (n,)):
        raise RuntimeError(
            f"codecllm::{op}: scale is {scale.dtype} {list(scale.shape)}, not torch.float32 [{n}]"
        )


def _finish(words, scale, rows, cols, layout, dtype):
    """Bytes [rows, cols * b] to the weight format's dtype, or scaled and cast to `dtype`."""
    native = by_id(layout & 0xFF).dtype
    out = words.view(native) if words.numel() else words.new_empty((rows, cols), dtype=native)
    if dtype is None or (dtype == native and scale is None):
        return out
    if scale is None:
        return out.to(dtype)
    scale = scale.expand(rows)[:, None]
    scaled = out.new_empty((rows, cols), dtype=dtype)
    # In blocks: float32 in between would be four times the words.
    block = max(1, _SCALED_AT_ONCE // max(1, cols))
    for begin in range(0, rows, block):
        some = slice(begin, begin + block)
        scaled[some] = out[some].to(torch.float32) * scale[some]
    return scaled


def _decode(stream, raw, index, table, scale, rows, cols, layout, dtype=None):
    _same_device("decode", stream, raw=raw, index=index, table=table, scale=scale)
    _check_scale("decode", scale, rows, layout)
    backend = backend_for(stream.device)
    words = backend.decode_words(stream, raw, index, table, rows, cols, layout)
    return _finish(words, scale, rows, cols, layout, dtype)


def _decode_rows(ids, stream, raw, index, table, scale, rows, cols, layout, dtype=None):
    _same_device("decode_rows", stream, ids=ids, raw=raw, index=index, table=table, scale=scale)
    _check_scale("decode_rows", scale, rows, layout)
    if ids.dtype not in (torch.int64, torch.int32):
        raise RuntimeError(f"codecllm::decode_rows: ids are {ids.dtype}, not int64 or int32")
    flat = ids.reshape(-1).to(torch.int64).contiguous()
    backend = backend_for(stream.device)
    words = backend.decode_rows_words(flat, stream, raw, index, table, rows, cols, layout)
    if scale is not None and scale.numel() > 1:
        scale = scale[flat.clamp(0, rows - 1)]  # what is outside was said, or is all ones
    return _finish(words, scale, flat.numel(), cols, layout, dtype).view(*ids.shape, cols)


def _check_linear(x, stream, table, scale, bias, rows, cols, layout):
    """What csrc/torch/linear_args.h checks as well."""
    _same_device("decode_linear", stream, x=x, table=table, scale=scale, bias=bias)
    if x.dtype not in ACTIVATIONS:
        raise RuntimeError(f"codecllm::decode_linear: x is {x.dtype}, not one of {ACTIVATIONS}")
    if x.dim() < 1 or x.shape[-1] != cols:
        raise RuntimeError(
            f"codecllm::decode_linear: the last dimension of x must be {cols}: {list(x.shape)}"
        )
    if bias is not None and (bias.dtype != x.dtype or bias.shape != (rows,)):
        raise RuntimeError(
            f"codecllm::decode_linear: bias is {bias.dtype} {list(bias.shape)}, "
            f"not {x.dtype} [{rows}]"
        )
    _check_scale("decode_linear", scale, rows, layout)


def _decode_then_linear(x, stream, raw, index, table, scale, bias, rows, cols, layout):
    """decode, then F.linear: what runs where no fused kernel does."""
    _check_linear(x, stream, table, scale, bias, rows, cols, layout)
    weight = _decode(stream, raw, index, table, scale, rows, cols, layout, x.dtype)
    return torch.nn.functional.linear(x, weight, bias)


def _decode_linear(x, stream, raw, index, table, scale, bias, rows, cols, layout):
    """The fused kernel of a backend in Python, or decode and F.linear."""
    fused = getattr(backend_for(stream.device), "decode_linear", None)
    if fused is not None:
        _check_linear(x, stream, table, scale, bias, rows, cols, layout)
        y = fused(x, stream, raw, index, table, scale, bias, rows, cols, layout)
        if y is not None:
            return y
    return _decode_then_linear(x, stream, raw, index, table, scale, bias, rows, cols, layout)


def _encode(weight, scale=None, *, tile_cols=None, scale_bits=11, predictor="none",
            allow_stored=True):  # fmt: skip
    coded = encoder.encode(
        weight,
        scale,
        backend_for_encoding(),
        tile_cols=tile_cols,
        scale_bits=scale_bits,
        predictor=predictor,
        allow_stored=allow_stored,
    )
    return coded.tensors()


LIBRARY.impl("encode", _encode, "CompositeExplicitAutograd")
LIBRARY.impl("decode", _decode, "CompositeExplicitAutograd")
LIBRARY.impl("decode_rows", _decode_rows, "CompositeExplicitAutograd")
# Where a compiled kernel passes: on a GPU that it has no code for Triton may have one.
LIBRARY.impl("_decode_then_linear", _decode_linear, "CompositeExplicitAutograd")
# The compiled libraries' own kernels come before this one.
LIBRARY.impl("decode_linear", _decode_linear, "CompositeExplicitAutograd")

_override: Library | None = None


def _rebind() -> None:
    """Puts this file's decode_linear before compiled kernels that are loaded but not wanted."""
    global _override
    if _override is not None:
        _override._destroy()
        _override = None
    if keys := overridden():
        _override = Library("codecllm", "IMPL")
        with warnings.catch_warnings():  # that a kernel is overridden: it is meant
            warnings.simplefilter("ignore")
            for key in keys:
                _override.impl("decode_linear", _decode_linear, key)


on_change(_rebind)


@register_fake("codecllm::encode", lib=LIBRARY)
def _(weight, scale=None, *, tile_cols=None, scale_bits=11, predictor="none", allow_stored=True):
    ctx = get_ctx()
    sizes = [ctx.new_dynamic_size() for _ in range(4)]
    dtypes = (torch.uint8, torch.uint8, torch.int32, torch.uint8)
    return tuple(weight.new_empty((n,), dtype=d) for n, d in zip(sizes, dtypes, strict=True))


@register_fake("codecllm::decode", lib=LIBRARY)
def _(stream, raw, index, table, scale, rows, cols, layout, dtype=None):
    _same_device("decode", stream, raw=raw, index=index, table=table, scale=scale)
    return stream.new_empty((rows, cols), dtype=dtype or by_id(layout & 0xFF).dtype)


@register_fake("codecllm::decode_rows", lib=LIBRARY)
def _(ids, stream, raw, index, table, scale, rows, cols, layout, dtype=None):
    _same_device("decode_rows", stream, ids=ids, raw=raw, index=index, table=table, scale=scale)
    return stream.new_empty((*ids.shape, cols), dtype=dtype or by_id(layout & 0xFF).dtype)


def _fake_linear(x, stream, raw, index, table, scale, bias, rows, cols, layout):
    _same_device("decode_linear", stream, x=x, raw=raw, index=index, table=table, scale=scale)
    _same_device("decode_linear", stream, bias=bias)
    torch._check(x.shape[-1] == cols, lambda: f"decode_linear: x {list(x.shape)}, cols {cols}")
    return x.new_empty((*x.shape[:-1], rows))


register_fake("codecllm::decode_linear", _fake_linear, lib=LIBRARY)


def _below_autograd(keyset, *args):
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.codecllm.decode_linear.default.redispatch(
            keyset & torch._C._after_autograd_keyset, *args
        )


class _DifferentiableLinear(torch.autograd.function._SingleLevelFunction):
    """decode_linear with derivatives in x and bias.

    _SingleLevelFunction, not Function: below a transform of torch.func this runs once per level,
    on tensors of that level, and the dispatcher goes on to the next. Function would start the
    transforms anew.
    """

    @staticmethod
    def forward(keyset, *args):
        # Autograd switches both off for a forward, but the levels below take derivatives too.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return _below_autograd(keyset, *args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, stream, raw, index, table, scale, _, *ctx.call = inputs
        # Streams only: the backward pass decodes again, nothing dense is kept.
        ctx.save_for_backward(stream, raw, index, table, scale)
        ctx.save_for_forward(stream, raw, index, table, scale)
        ctx.out = output.shape, output.dtype

    @staticmethod
    def backward(ctx, grad):
        grad_x = grad_bias = None
        _, need_x, *_, need_bias, _, _, _ = ctx.needs_input_grad
        if need_x:
            weight = torch.ops.codecllm.decode(*ctx.saved_tensors, *ctx.call, dtype=grad.dtype)
            grad_x = grad @ weight
        if need_bias:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return None, grad_x, None, None, None, None, None, grad_bias, None, None, None

    @staticmethod
    def jvp(ctx, _keyset, x_tangent, *others):
        """Linear in x and bias: the tangent of x takes the same way."""
        *_, bias_tangent, _, _, _ = others
        if x_tangent is None:
            return bias_tangent.expand(ctx.out[0]).clone()
        streams = ctx.saved_tensors
        return torch.ops.codecllm.decode_linear(x_tangent, *streams, bias_tangent, *ctx.call)


def _autograd_linear(keyset, *args):
    x, bias = args[0], args[6]
    wanted = torch.is_grad_enabled() and (
        x.requires_grad or (bias is not None and bias.requires_grad)
    )
    # Compiled code enters a level of forward mode without this number; its transforms are active.
    forward = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    if wanted or forward:
        with enable_single_level_autograd_function():
            return _DifferentiableLinear.apply(keyset, *args)
    return _below_autograd(keyset, *args)


LIBRARY.impl("decode_linear", _autograd_linear, "Autograd", with_keyset=True)


def _refuse_batched_matrix(op: str, in_dims) -> None:
    if any(dim is not None for dim in in_dims):
        raise NotImplementedError(
            f"codecllm::{op}: torch.func.vmap over the coded matrix or its scales; one matrix for "
            "all samples is supported, vmap over "
            + ("ids" if op == "decode_rows" else "x and bias")
        )


@register_vmap("codecllm::decode_linear", lib=LIBRARY)
def _(info, in_dims, x, stream, raw, index, table, scale, bias, rows, cols, layout):
    x_dim, *coded_dims, bias_dim = in_dims[:7]
    _refuse_batched_matrix("decode_linear", coded_dims)
    streams = stream, raw, index, table, scale
    rank = x.dim() - (x_dim is not None)  # of one sample
    if x_dim is not None:
        x = x.movedim(x_dim, 0)
    if bias_dim is None:
        return torch.ops.codecllm.decode_linear(x, *streams, bias, rows, cols, layout), 0
    y = torch.ops.codecllm.decode_linear(x, *streams, None, rows, cols, layout)
    return y + bias.movedim(bias_dim, 0).reshape(info.batch_size, *[1] * (rank - 1), rows), 0


@register_vmap("codecllm::decode_rows", lib=LIBRARY)
def _(info, in_dims, ids, *args, **kwargs):
    ids_dim, *coded_dims = in_dims[:6]
    _refuse_batched_matrix("decode_rows", coded_dims)
    return torch.ops.codecllm.decode_rows(ids.movedim(ids_dim, 0), *args, **kwargs), 0


def _autocast_linear(device: str):
    """Casts x and bias as autocast does for F.linear; scales stay float32."""

    def call(x, stream, raw, index, table, scale, bias, rows, cols, layout):
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return torch.ops.codecllm.decode_linear(
                x.to(dtype), stream, raw, index, table, scale,
                None if bias is None else bias.to(dtype), rows, cols, layout,
            )  # fmt: skip

    return call


LIBRARY.impl("decode_linear", _autocast_linear("cpu"), "AutocastCPU")
LIBRARY.impl("decode_linear", _autocast_linear("cuda"), "AutocastCUDA")


@register_flop_formula(torch.ops.codecllm.decode_linear)
def _flops(x_shape, stream, raw, index, table, scale, bias, rows, cols, layout, *args, **kwargs):
    return 2 * math.prod(x_shape) * rows


assert STORED_BIT == 18  # csrc/torch/coded_args.h reads the same bit
