"""The four streams of a coded matrix as Parameters, and what the host can see of them."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from codecllm_ops.codec.coded import lasting
from codecllm_ops.format import Head

STREAM_DTYPES = {
    "weight": torch.uint8,
    "weight_raw": torch.uint8,
    "weight_index": torch.int32,
    "weight_head": torch.uint8,
}
STREAM_NAMES = tuple(STREAM_DTYPES)

_FROZEN = (
    "a coded weight is frozen and takes no gradient; train adapters, or decompress what shall be "
    "trained (codecllm.decompress_model, or should_compress / --skip when it is compressed)"
)
_CRC_AT = 60  # bytes 60..63 of a head: the checksum of all of it, and so of all four streams
_ASKS_ALL = nn.Module.requires_grad_.__code__


class Untrained:
    """A tensor that is never trained.

    `model.requires_grad_(True)` asks every Parameter and passes by; who asks this one in
    particular gets an error, because it would not learn.
    """

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        if requires_grad and sys._getframe(1).f_code is not _ASKS_ALL:
            raise ValueError(_FROZEN)
        return self

    @property
    def requires_grad(self) -> bool:
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value:
            raise ValueError(_FROZEN)


class Stream(Untrained, nn.Parameter):
    """One of the four streams: a Parameter, so that device maps move it."""

    ds_shape: tuple[int, int]
    """Shape of the dense weight, under the name that ZeRO-3 has for it: prompt tuning looks for the
    Parameter of vocab_size rows. Only `weight` has it."""

    def __new__(cls, data: torch.Tensor | None = None, requires_grad: bool = False) -> Stream:
        """Args: data: of a stream's dtype; of a CodedWeight, its first stream is taken."""
        if data is None:
            data = torch.empty(0, dtype=torch.uint8)
        streams = getattr(data, "streams", None)  # accelerate: type(old)(module.weight.to(device))
        return torch.Tensor._make_subclass(cls, data if streams is None else streams[0], False)

    @property
    def _fsdp_flattened(self) -> bool:
        """The first thing that FSDP1 asks a Parameter."""
        raise NotImplementedError(
            "FullyShardedDataParallel makes one float tensor of all weights, and coded streams are "
            "integers; use fully_shard (FSDP2)"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Stream, (self.data,)  # no attributes: they belong to the process


def as_stream(parameter: nn.Parameter) -> nn.Parameter:
    """Makes a plain Parameter a Stream, in place: it may be shared, and tied modules compare it."""
    if type(parameter) is nn.Parameter:
        parameter.__class__ = Stream
    return parameter


def has_bytes(t: torch.Tensor) -> bool:
    """Whether there is memory to look at: not on meta, no fake, no wrapper of a transform."""
    return (
        type(t) in (Stream, nn.Parameter, torch.Tensor)
        and not t.is_meta
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
    )


def on_host(t: torch.Tensor) -> bool:
    """Whether reading `t` waits for nobody."""
    return t.device.type == "cpu"


def align(t: torch.Tensor) -> None:
    """Moves a stream on a GPU to where kernels can load 16 bytes at once; allocators do so."""
    if not on_host(t) and t.data_ptr() % 16:
        t.data = t.data.clone()


def mark_dynamic(t: torch.Tensor) -> torch.Tensor:
    """Tells torch.compile that the sizes of `t` are one matrix's: another's may differ.

    As torch._dynamo.maybe_mark_dynamic does, whose import takes more than a second.
    """
    t._dynamo_weak_dynamic_indices = set(range(t.dim()))
    t._has_dynamo_dim_marking = True
    return t


def checksum_word(head: torch.Tensor) -> ctypes.c_uint32:
    """The checksum in a head on the host: its `value` is what is there now, in 0.05 us.

    To be read only while the head has the address that it had here.
    """
    return ctypes.c_uint32.from_address(head.data_ptr() + _CRC_AT)


def checksum(head: torch.Tensor) -> int:
    """The checksum in a head; waits for the device."""
    return checksum_of(bytes(head.data[: _CRC_AT + 4].tolist()))


def checksum_of(head: bytes) -> int:
    return int.from_bytes(head[_CRC_AT : _CRC_AT + 4], sys.byteorder)


def parse_head(head: torch.Tensor) -> Head:
    """Raises CorruptStreamError or UnsupportedFormatError. One matrix's head is parsed once."""
    with lasting():
        return _parse(bytes(head.data.tolist()))


_parse = lru_cache(maxsize=16)(Head.parse)
