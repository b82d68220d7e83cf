"""From a dense module to its compressed form and back, subclasses included.

Models subclass nn.Embedding and nn.Linear to add something around the product (Gemma scales its
embeddings, Falcon writes `input @ self.weight.T`). A class that inherits from both the subclass and
the compressed module runs the same code: what it reads as `self.weight` is a CodedWeight.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from codecllm_ops.codec.coded import lasting

from .embedding import CompressedEmbedding, unsupported_option
from .execution import FUSED, Execution, chosen
from .holder import Streams
from .linear import CompressedLinear
from .module import CodedModule
from .streams import STREAM_NAMES

_COMPRESSED: dict[type[nn.Module], type[CodedModule]] = {
    nn.Linear: CompressedLinear,
    nn.Embedding: CompressedEmbedding,
}
_OURS = {"dtype_like", "weight_table", "weight_scale", *STREAM_NAMES}
_OWN = {"execution", "statistics", "coding_reason", "_head", "_known", "_operand", "_live"}


def obstacle(module: nn.Module) -> str | None:
    """Why a module cannot hold coded weights, or None: it can."""
    base = _dense_base(type(module))
    if isinstance(module, CodedModule):
        return "it is compressed already"
    if base is None:
        return f"{type(module).__name__} is neither nn.Linear nor nn.Embedding"
    own = type(module).__mro__[: type(module).__mro__.index(base)]
    weight = module._parameters.get("weight")
    if weight is None or any("weight" in vars(cls) for cls in own):
        return "its weight is computed from other Parameters"
    if type(weight) not in (nn.Parameter, torch.Tensor):
        return f"its weight is a {type(weight).__name__}"
    # Code that knows these hands the weight's memory to kernels of its own.
    if companions := [name for name in module._parameters if name.startswith("weight_")]:
        return f"its weight goes with {', '.join(companions)}"
    if isinstance(module, nn.Embedding) and (option := unsupported_option(module)):
        return f"an embedding with {option}"
    return None


def coded_form(
    module: nn.Module,
    streams: Streams | CodedModule,
    dtype: torch.dtype,
    *,
    execution: Execution | str = FUSED,
) -> CodedModule:
    """The compressed module that takes the place of `module` (whose obstacle() is None).

    Args:
        streams: as CompressedLinear.from_streams takes them.
        dtype: of the dense weight outside.
        execution: how it computes, or the name of that.
    """
    base = _dense_base(type(module))
    assert base is not None
    cls = _mixed(type(module), _COMPRESSED[base])
    new = cls._made(cls._options_of(module), streams, dtype, chosen(execution))
    _take_over(module, new)
    return new


def dense_form(module: CodedModule, weight: nn.Parameter | None = None) -> nn.Module:
    """The dense module, of the class that was compressed.

    Args:
        weight: where it is decoded already (tied modules).
    """
    if weight is None:
        with lasting():
            weight = nn.Parameter(module.dense_weight())
    dense = module._dense_without_weight()
    if type(module) not in _COMPRESSED.values():
        dense.__class__ = type(module).__mro__[1]
    dense.weight = weight
    _take_over(module, dense)
    return dense


def _dense_base(cls: type) -> type[nn.Module] | None:
    return next((base for base in _COMPRESSED if issubclass(cls, base)), None)


@cache
def _mixed(cls: type, compressed: type[CodedModule]) -> type[CodedModule]:
    if cls in _COMPRESSED:
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
