"""Calls of the ops from Python in eager mode, with little around them. What modules use.

A kernel under the Autograd key that is written in Python costs more than a small product: the
dispatcher goes from C++ to Python and back (bench/bench_calls.py). So what that kernel decides is
decided here, before the dispatcher is entered. Whatever is not plain eager mode
(torch.compile, torch.func, forward mode) takes the op's own way, with the same result.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from ..codec.operand import Operand
from ..format.errors import typed
from ..format.layout_word import Layout
from ..format.scales import NO_SCALE
from . import schema  # noqa: F401  (ops must exist)
from .backends.cpu import CPU
from .registry import backend_for

_decode = torch.ops.codecllm.decode.default
_linear = torch.ops.codecllm.decode_linear.default
_rows = torch.ops.codecllm.decode_rows.default
_rows_native = torch.ops.codecllm._decode_rows_native.default
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_transforms = torch._C._are_functorch_transforms_active
_compiling = torch.compiler.is_compiling


def linear(x: torch.Tensor, coded: Operand | tuple, bias: torch.Tensor | None) -> torch.Tensor:
    """x [..., cols] -> [..., rows]; see codecllm_ops.decode_linear.

    Args:
        coded: an Operand, or a plain tuple in its order, which is made in a third of the time.

    Raises:
        CorruptStreamError: the streams are corrupt, as far as decoding notices.
    """
    if _compiling():
        return _linear(x, *coded, bias)
    try:
        if forward_ad._current_level >= 0 or _transforms():
            return _linear(x, *coded, bias)
        if torch.is_grad_enabled() and (
            x.requires_grad or (bias is not None and bias.requires_grad)
        ):
            if torch.is_autocast_enabled(x.device.type):  # its casts belong into the graph
                return _linear(x, *coded, bias)
            return _Linear.apply(x, bias, coded)
        with _BelowAutograd():
            return _linear(x, *coded, bias)
    except RuntimeError as error:
        raise typed(error) from None


def rows(ids: torch.Tensor, coded: Operand | tuple, dtype: torch.dtype | None) -> torch.Tensor:
    """Rows `ids` [...] -> [..., cols]; see codecllm_ops.decode_rows."""
    if _compiling():
        return _rows(ids, *coded, dtype)
    try:
        if _transforms():
            return _rows(ids, *coded, dtype)
        with _BelowAutograd():
            if _native(ids, coded, dtype):
                stream, raw, index, table, _, *rest = coded
                return _rows_native(ids, stream, raw, index, table, *rest)
            return _rows(ids, *coded, dtype)
    except RuntimeError as error:
        raise typed(error) from None


def _native(ids: torch.Tensor, coded: Operand | tuple, dtype: torch.dtype | None) -> bool:
    """Whether the compiled CPU kernel puts out what is wanted: an embedding's common case, which
    the op itself would take through checks and conversions in Python.
    """
    return (
        type(ids) is torch.Tensor
        and ids.dtype is torch.int64
        and coded[4] is None
        and ids.is_contiguous()
        and not torch._C._len_torch_dispatch_stack()
        and backend_for(ids.device) is CPU
        and (unpacked := Layout.unpack(coded[7])).scale_kind == NO_SCALE
        and (dtype is None or dtype is unpacked.fmt.dtype)
    )


def decode(coded: Operand | tuple, dtype: torch.dtype | None = None) -> torch.Tensor:
    """[rows, cols] of `dtype`, None: the coded bits; see codecllm_ops.decode."""
    if _compiling():
        return _decode(*coded, dtype)
    try:
        return _decode(*coded, dtype)
    except RuntimeError as error:
        raise typed(error) from None


def gradients(ctx, grad: torch.Tensor, of_x: bool, of_bias: bool) -> tuple:
    """Of x and of bias, from what a forward has saved: the weight is decoded again."""
    grad_x = grad_bias = None
    if of_x:
        coded = Operand(*ctx.saved_tensors, *ctx.shape)
        grad_x = grad @ torch.ops.codecllm.decode(*coded, dtype=grad.dtype)
    if of_bias:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
    return grad_x, grad_bias


class _Linear(torch.autograd.function._SingleLevelFunction):
    """The derivative of decode_linear, without torch.func (autograd.py has it with).

    What Function.apply adds to that of _SingleLevelFunction is for torch.func, and takes a third of
    the call.
    """

    @staticmethod
    def forward(ctx, x, bias, coded):
        # Streams only: the backward pass decodes again, nothing dense is kept.
        ctx.save_for_backward(*coded[:5])
        ctx.shape = coded[5:]
        with _BelowAutograd():
            return _linear(x, *coded, bias)

    @staticmethod
    def backward(ctx, grad):
        return *gradients(ctx, grad, *ctx.needs_input_grad[:2]), None
