"""Derivatives, vmap and autocast of the ops.

Both products are linear in x and bias: the gradient of x decodes again, nothing dense is kept, and
forward mode is a call of the same op.
"""

from __future__ import annotations

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.library import register_vmap

from ..codec.operand import Operand
from .calls import gradients
from .schema import LIBRARY

# Arguments of decode_linear: keyset (Autograd kernels only), x, the operand, bias.
_BIAS = 1 + len(Operand._fields)


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
    def forward(keyset, x, *args):
        # Autograd switches both off for a forward, but the levels below take derivatives too.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return _below_autograd(keyset, x, *args)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, _, *coded, _ = inputs
        coded = Operand(*coded)
        # Streams only: the backward pass decodes again, nothing dense is kept.
        ctx.save_for_backward(*coded.tensors)
        ctx.save_for_forward(*coded.tensors)
        ctx.shape = coded.rows, coded.cols, coded.layout
        ctx.out = output.shape, output.dtype

    @staticmethod
    def backward(ctx, grad):
        needs = ctx.needs_input_grad
        grad_x, grad_bias = gradients(ctx, grad, needs[1], needs[1 + _BIAS])
        return None, grad_x, *[None] * len(Operand._fields), grad_bias

    @staticmethod
    def jvp(ctx, _keyset, x_tangent, *others):
        """The tangent of x takes the same way."""
        bias_tangent = others[-1]
        if x_tangent is None:
            return bias_tangent.expand(ctx.out[0]).clone()
        coded = Operand(*ctx.saved_tensors, *ctx.shape)
        return torch.ops.codecllm.decode_linear(x_tangent, *coded, bias_tangent)


def _autograd_linear(keyset, x, *args):
    coded, bias = Operand.leading(args)
    wanted = torch.is_grad_enabled() and (
        x.requires_grad or (bias is not None and bias.requires_grad)
    )
    # Compiled code enters a level of forward mode without this number; its transforms are active.
    forward = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    if wanted or forward:
        with enable_single_level_autograd_function():
            return _DifferentiableLinear.apply(keyset, x, *coded, bias)
    return _below_autograd(keyset, x, *coded, bias)


LIBRARY.impl("decode_linear", _autograd_linear, "Autograd", with_keyset=True)


def _refuse_batched_matrix(op: str, in_dims: Operand) -> None:
    if any(dim is not None for dim in in_dims.tensors):
        raise NotImplementedError(
            f"codecllm::{op}: torch.func.vmap over the coded matrix or its scales; one matrix for "
            "all samples is supported, vmap over "
            + ("ids" if op == "decode_rows" else "x and bias")
        )


@register_vmap("codecllm::decode_linear", lib=LIBRARY)
def _(info, in_dims, x, *args):
    coded, bias = Operand.leading(args)
    x_dim, bias_dim = in_dims[0], in_dims[_BIAS] if len(in_dims) > _BIAS else None
    _refuse_batched_matrix("decode_linear", Operand(*in_dims[1:_BIAS]))
    rank = x.dim() - (x_dim is not None)  # of one sample
    if x_dim is not None:
        x = x.movedim(x_dim, 0)
    if bias_dim is None:
        return torch.ops.codecllm.decode_linear(x, *coded, bias), 0
    y = torch.ops.codecllm.decode_linear(x, *coded)
    ones = [1] * (rank - 1)
    return y + bias.movedim(bias_dim, 0).reshape(info.batch_size, *ones, coded.rows), 0


@register_vmap("codecllm::decode_rows", lib=LIBRARY)
def _(info, in_dims, ids, *args, **kwargs):
    _refuse_batched_matrix("decode_rows", Operand(*in_dims[1:_BIAS]))
    return torch.ops.codecllm.decode_rows(ids.movedim(in_dims[0], 0), *args, **kwargs), 0


def _autocast_linear(device: str):
    """Casts x and bias as autocast does for F.linear; scales stay float32."""

    def call(x, *args):
        coded, bias = Operand.leading(args)
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            bias = None if bias is None else bias.to(dtype)
            return torch.ops.codecllm.decode_linear(x.to(dtype), *coded, bias)

    return call


LIBRARY.impl("decode_linear", _autocast_linear("cpu"), "AutocastCPU")
LIBRARY.impl("decode_linear", _autocast_linear("cuda"), "AutocastCUDA")
