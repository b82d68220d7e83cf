"""Calls of the ops from Python in eager mode, with little around them. What modules use.

A kernel under the Autograd key that is written in Python costs more than a small product: the
dispatcher goes from C++ to Python and back (12 of 20 us, measured on a 32 x 32 layer). So what that
kernel decides is decided here, before the dispatcher is entered. Whatever is not plain eager mode
(torch.compile, torch.func, forward mode) takes the op's own way, with the same result.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from ..codec.operand import Operand
from ..format.errors import CorruptStreamError
from . import schema  # noqa: F401  (ops must exist)

_linear = torch.ops.codecllm.decode_linear.default
_rows = torch.ops.codecllm.decode_rows.default
_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_transforms = torch._C._are_functorch_transforms_active
_compiling = torch.compiler.is_compiling


def linear(x: torch.Tensor, coded: Operand, bias: torch.Tensor | None) -> torch.Tensor:
    """x [..., cols] -> [..., rows]; see codecllm_ops.decode_linear.

    Raises:
        CorruptStreamError: the streams do not end as the encoder began.
    """
    if _compiling() or forward_ad._current_level >= 0 or _transforms():
        return _linear(x, *coded, bias)
    try:
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


def rows(ids: torch.Tensor, coded: Operand, dtype: torch.dtype | None) -> torch.Tensor:
    """Rows `ids` [...] -> [..., cols]; see codecllm_ops.decode_rows."""
    if _compiling() or _transforms():
        return _rows(ids, *coded, dtype)
    try:
        with _BelowAutograd():
            return _rows(ids, *coded, dtype)
    except RuntimeError as error:
        raise typed(error) from None


def typed(error: RuntimeError) -> Exception:
    """Compiled kernels can only raise RuntimeError: corruption and bad indices get their own types
    back.
    """
    message = str(error)
    if ": corrupt " in message:
        return CorruptStreamError(message)
    if "is out of range" in message:
        return IndexError(message)
    return error


def gradients(ctx, grad: torch.Tensor, of_x: bool, of_bias: bool) -> tuple:
    """Of x and of bias, from what a forward has saved: the weight is decoded again."""
    grad_x = grad_bias = None
    if of_x:
        coded = Operand(*ctx.saved_tensors, *ctx.shape)
        grad_x = grad @ torch.ops.codecllm.decode(*coded, dtype=grad.dtype)
    if of_bias:
        grad_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
    return grad_x, grad_bias


class _Linear(torch.autograd.Function):
    """The derivative of decode_linear, without torch.func (autograd.py has it with)."""

    @staticmethod
    def forward(ctx, x, bias, coded):
        # Streams only: the backward pass decodes again, nothing dense is kept.
        ctx.save_for_backward(*coded.tensors)
        ctx.shape = coded[5:]
        with _BelowAutograd():
            return _linear(x, *coded, bias)

    @staticmethod
    def backward(ctx, grad):
        return *gradients(ctx, grad, *ctx.needs_input_grad[:2]), None
