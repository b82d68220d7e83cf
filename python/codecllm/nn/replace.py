"""From a dense module to its compressed form and back, subclasses included.

Models subclass nn.Embedding and nn.Linear to add something around the product (Gemma scales its
embeddings). Where such a class calls `super().forward`, a class that inherits from both it and the
compressed module does the same on coded weights. Where it reads `self.weight` itself, it does not.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from .embedding import CompressedEmbedding, unsupported_option
from .linear import CompressedLinear
from .streams import STREAM_NAMES, CodedModule

_OURS = {"dtype_like", "weight_table", "weight_scale", *STREAM_NAMES}
_OWN = {"exact", "statistics", "_layout", "_tables_of"}


def obstacle(module: nn.Module) -> str | None:
    """Why a module cannot hold coded weights: None: it can; "": it is no Linear or Embedding."""
    base = _dense_base(type(module))
    if base is None or isinstance(module, CodedModule):
        return ""
    for cls in type(module).__mro__:
        if cls is base:
            break
        forward = vars(cls).get("forward")
        code = getattr(forward, "__code__", None)
        if forward is None:
            continue
        if code is None or "__class__" not in code.co_freevars or "weight" in code.co_names:
            return f"{cls.__name__}.forward uses the weight itself"
    if isinstance(module, nn.Embedding) and (option := unsupported_option(module)):
        return f"an embedding with {option}"
    return None


def coded_form(
    module: nn.Module,
    streams: dict[str, torch.Tensor] | CodedModule,
    dtype: torch.dtype,
    *,
    exact: bool = False,
) -> CodedModule:
    """The compressed module that takes the place of `module` (whose obstacle() is None).

    Args:
        streams: as CompressedLinear.from_streams takes them.
        dtype: of the dense weight outside.
    """
    new: CodedModule
    if isinstance(module, nn.Linear):
        cls = _mixed(type(module), CompressedLinear)
        new = cls.from_streams(
            module.in_features,
            module.out_features,
            streams,
            bias=module.bias,
            dtype=dtype,
            exact=exact,
        )
    else:
        assert isinstance(module, nn.Embedding)
        cls = _mixed(type(module), CompressedEmbedding)
        new = cls.from_streams(
            module.num_embeddings,
            module.embedding_dim,
            streams,
            padding_idx=module.padding_idx,
            dtype=dtype,
            exact=exact,
        )
    _take_over(module, new)
    return new


def dense_form(module: CodedModule, weight: nn.Parameter | None = None) -> nn.Module:
    """The dense module, of the class that was compressed.

    Args:
        weight: where it is decoded already (tied modules).
    """
    if weight is None:
        weight = nn.Parameter(module.dense_weight())
    dense: nn.Module
    if isinstance(module, CompressedLinear):
        dense = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
        dense.register_parameter("bias", module.bias)
    else:
        assert isinstance(module, CompressedEmbedding)
        dense = nn.Embedding(
            module.num_embeddings,
            module.embedding_dim,
            padding_idx=module.padding_idx,
            device="meta",
        )
    original = type(module).__mro__[1]
    if type(module) not in (CompressedLinear, CompressedEmbedding):
        dense.__class__ = original
    dense.weight = weight
    _take_over(module, dense)
    return dense


def _dense_base(cls: type) -> type | None:
    return next((base for base in (nn.Linear, nn.Embedding) if issubclass(cls, base)), None)


@cache
def _mixed(cls: type, compressed: type) -> type:
    if cls in (nn.Linear, nn.Embedding):
        return compressed
    members = {"__doc__": compressed.__doc__, "__reduce_ex__": _reduce_mixed}
    return type(f"Compressed{cls.__name__}", (cls, compressed), members)


def _reduce_mixed(self: CodedModule, protocol: int):
    """pickle finds classes by name; this one is made again from the two that it inherits from."""
    return _new_mixed, type(self).__bases__, self.__getstate__()


def _new_mixed(cls: type, compressed: type) -> CodedModule:
    mixed = _mixed(cls, compressed)
    return mixed.__new__(mixed)


def _take_over(old: nn.Module, new: nn.Module) -> None:
    """Moves what the new module's constructor does not know: a subclass's attributes and buffers,
    and the hooks of users. What `new` has of its own stays.
    """
    new.train(old.training)
    for group in ("_parameters", "_buffers", "_modules"):
        for name, value in getattr(old, group).items():
            if name not in _OURS and name not in getattr(new, group):
                getattr(new, group)[name] = value
    new._non_persistent_buffers_set |= old._non_persistent_buffers_set - _OURS
    for name, value in vars(old).items():
        if name.startswith("_forward"):
            getattr(new, name).update(value)
        elif name not in vars(new) and name not in _OWN:
            vars(new)[name] = value
