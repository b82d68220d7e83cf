"""Implementations, fakes and FLOP formulas of the public ops; derivatives are in autograd.py."""

from __future__ import annotations

import math
import warnings
import zlib

import torch
from torch.library import Library, get_ctx, register_fake
from torch.utils.flop_counter import register_flop_formula

from ..codec.assemble import bytes_of
from ..codec.fixed import encode as fixed_encoder
from ..codec.operand import Operand
from ..codec.rans import encoder
from ..format import scales
from ..format.layout_word import Layout
from . import checks, registry
from .registry import backend_for, backend_for_encoding
from .schema import LIBRARY

# ---- decode -------------------------------------------------------------------------------------


def _dtype_of(coded: Operand) -> torch.dtype:
    return Layout.unpack(coded.layout).fmt.dtype


def _decode_words(coded: Operand, out: torch.Tensor) -> torch.Tensor:
    """Fills `out`, [rows, cols] of the coded dtype, contiguous, with the words."""
    if out.numel():
        backend_for(out.device).decode_into(coded, out.view(torch.uint8))
    return out


def _converted(words: torch.Tensor, scale: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    if scale is None:
        return out.copy_(words)
    return scales.apply(words, scale, out)


def _decode(*args):
    coded, dtype = Operand.leading(args)
    checks.same_device("decode", coded)
    checks.scale_fits("decode", coded)
    native = _dtype_of(coded)
    words = coded.stream.new_empty((coded.rows, coded.cols), dtype=native)
    _decode_words(coded, words)
    if dtype is None or (dtype == native and coded.scale is None):
        return words
    return _converted(words, coded.scale, words.new_empty(words.shape, dtype=dtype))


def _decode_out(*args, out):
    coded = Operand(*args)
    checks.same_device("decode", coded, out=out)
    checks.scale_fits("decode", coded)
    checks.out_fits(coded, out)
    native = _dtype_of(coded)
    if out.dtype == native and coded.scale is None and out.is_contiguous():
        _decode_words(coded, out)
    else:
        words = _decode_words(coded, out.new_empty(out.shape, dtype=native))
        _converted(words, coded.scale, out)


def _decode_rows(ids, *args):
    coded, dtype = Operand.leading(args)
    checks.same_device("decode_rows", coded, ids=ids)
    checks.scale_fits("decode_rows", coded)
    checks.ids_fit(ids)
    flat = ids.reshape(-1).to(torch.int64).contiguous()
    found = backend_for(ids.device).decode_rows_words(flat, coded)
    native = _dtype_of(coded)
    shape = flat.numel(), coded.cols
    words = found.view(native) if found.numel() else found.new_empty(shape, dtype=native)
    if dtype is not None and (dtype != native or coded.scale is not None):
        scale = scales.rows_of(coded.scale, flat, coded.rows)
        words = _converted(words, scale, words.new_empty(shape, dtype=dtype))
    return words.view(*ids.shape, coded.cols)


# ---- decode_linear ------------------------------------------------------------------------------


def _decode_then_linear(x, *args):
    """decode, then F.linear: what runs where no fused kernel does."""
    coded, bias = Operand.leading(args)
    checks.product_fits(x, coded, bias)
    return torch.nn.functional.linear(x, _decode(*coded, x.dtype), bias)


def _decode_linear(x, *args):
    """The fused kernel of a backend in Python, or decode and F.linear."""
    coded, bias = Operand.leading(args)
    backend = backend_for(coded.stream.device)
    if backend.fuses:
        checks.product_fits(x, coded, bias)
        y = backend.decode_linear(x, coded, bias)
        if y is not None:
            return y
    return _decode_then_linear(x, *args)


# ---- encode -------------------------------------------------------------------------------------


def _encode(weight, scale=None, *, format=None, tile_cols=None, scale_bits=11, predictor="none",
            allow_stored=True, coding="rans"):  # fmt: skip
    if coding == "fixed":
        if (scale_bits, predictor) != (11, "none"):
            raise ValueError(
                f"encode: scale_bits {scale_bits} and predictor {predictor!r} are options of "
                'coding "rans"; "fixed" has neither'
            )
        return fixed_encoder.encode(weight, scale, format, tile_cols, allow_stored)
    if coding != "rans":
        raise ValueError(f'encode: coding {coding!r} is not one of "rans", "fixed"')
    coded = encoder.encode(
        weight,
        scale,
        backend_for_encoding(),
        format=format,
        tile_cols=tile_cols,
        scale_bits=scale_bits,
        predictor=predictor,
        allow_stored=allow_stored,
    )
    return coded.tensors()


def _fixed_of(*args):
    coded, (bases, tile_cols) = Operand(*args[:8]), args[8:]
    segments = [coded.rows] if not coded.table.numel() else coded.table[:, 3].tolist()
    return backend_for(coded.stream.device).to_fixed(coded, segments, bases.tolist(), tile_cols)


def _lying_tile(*args):
    coded = Operand(*args)
    return backend_for(coded.stream.device).lying_tile(coded)


def _crc32(data):
    return zlib.crc32(bytes_of(data))


# ---- registration -------------------------------------------------------------------------------

LIBRARY.impl("encode", _encode, "CompositeExplicitAutograd")
LIBRARY.impl("_fixed_of", _fixed_of, "CompositeExplicitAutograd")
LIBRARY.impl("_lying_tile", _lying_tile, "CompositeExplicitAutograd")
LIBRARY.impl("_crc32", _crc32, "CompositeExplicitAutograd")  # where no library is
LIBRARY.impl("decode", _decode, "CompositeExplicitAutograd")
LIBRARY.impl("decode.out", _decode_out, "CompositeExplicitAutograd")
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
    if keys := registry.overridden():
        _override = Library("codecllm", "IMPL")
        with warnings.catch_warnings():  # that a kernel is overridden: it is meant
            warnings.simplefilter("ignore")
            for key in keys:
                _override.impl("decode_linear", _decode_linear, key)


registry.on_change(_rebind)


@register_fake("codecllm::encode", lib=LIBRARY)
def _(weight, scale=None, **options):
    ctx = get_ctx()
    sizes = [ctx.new_dynamic_size() for _ in range(4)]
    dtypes = (torch.uint8, torch.uint8, torch.int32, torch.uint8)
    return tuple(weight.new_empty((n,), dtype=d) for n, d in zip(sizes, dtypes, strict=True))


@register_fake("codecllm::decode", lib=LIBRARY)
def _(*args, **kwargs):
    coded, dtype = Operand.leading(args, **kwargs)
    checks.same_device("decode", coded)
    return coded.stream.new_empty((coded.rows, coded.cols), dtype=dtype or _dtype_of(coded))


@register_fake("codecllm::decode.out", lib=LIBRARY)
def _(*args, out):
    coded = Operand(*args)
    checks.same_device("decode", coded, out=out)
    checks.out_fits(coded, out)


@register_fake("codecllm::decode_rows", lib=LIBRARY)
def _(ids, *args, **kwargs):
    coded, dtype = Operand.leading(args, **kwargs)
    checks.same_device("decode_rows", coded, ids=ids)
    return coded.stream.new_empty((*ids.shape, coded.cols), dtype=dtype or _dtype_of(coded))


def _fake_linear(x, *args):
    coded, bias = Operand.leading(args)
    checks.same_device("decode_linear", coded, x=x, bias=bias)
    torch._check(
        x.shape[-1] == coded.cols, lambda: f"decode_linear: x {list(x.shape)}, cols {coded.cols}"
    )
    return x.new_empty((*x.shape[:-1], coded.rows))


register_fake("codecllm::decode_linear", _fake_linear, lib=LIBRARY)


@register_flop_formula(torch.ops.codecllm.decode_linear)
def _flops(x_shape, *args, **kwargs):
    rows = args[Operand._fields.index("rows")]
    return 2 * math.prod(x_shape) * rows
