"""A module that holds the four streams: as what they are registered, moved, tied and loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from codecllm_ops.codec.coded import CodedMatrix, lasting
from codecllm_ops.format import CorruptStreamError, UnsupportedFormatError

from .streams import STREAM_DTYPES, STREAM_NAMES, Stream, as_stream, has_bytes
from .weight import CodedWeight

Streams = dict[str, torch.Tensor] | CodedMatrix | CodedWeight
"""What a module can be filled with: tensors by stream name, a coded matrix, a coded weight."""

_KEPT_BUFFERS = ("weight_table", "weight_scale")
_checksums_compared = ContextVar("checksums_compared", default=False)


@contextmanager
def checksums_compared() -> Iterator[None]:
    """load_state_dict in here leaves checksums out: for callers that have compared them already."""
    token = _checksums_compared.set(True)
    try:
        yield
    finally:
        _checksums_compared.reset(token)


class StreamHolder(nn.Module):
    """The storage of a compressed module: four Parameters; what follows from them is above."""

    weight_raw: nn.Parameter  # uint8 [*]
    weight_index: nn.Parameter  # int32 [*]
    weight_head: nn.Parameter  # uint8 [*]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """rows, cols of the dense weight."""
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether what is kept beside the streams belongs to those that are there."""
        raise NotImplementedError

    def rebuild(self) -> None:
        """Builds what is kept beside the streams."""
        raise NotImplementedError

    def _forget_streams(self) -> None:
        """Other streams are there now."""
        raise NotImplementedError

    def _streams_moved(self, ready: bool) -> None:
        """The same streams are elsewhere now; `ready` is what it was before."""
        raise NotImplementedError

    def _hold(
        self, streams: Streams | StreamHolder | None, device: torch.device | str | None
    ) -> None:
        """Registers the four Parameters."""
        for name, parameter in zip(STREAM_NAMES, _as_parameters(streams, device), strict=True):
            self.register_parameter(name, parameter)
        self._show_shape()

    @property
    def streams(self) -> tuple[nn.Parameter, ...]:
        """The four Parameters, in the order of STREAM_NAMES."""
        p = self._parameters
        return p["weight"], p["weight_raw"], p["weight_index"], p["weight_head"]  # type: ignore

    def _show_shape(self) -> None:
        self.streams[0].ds_shape = self.matrix_shape  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in STREAM_DTYPES or name not in self.__dict__.get("_parameters", ()):
            super().__setattr__(name, value)
            return
        if isinstance(value, CodedWeight):
            self._share(name, value)
            return
        if not isinstance(value, nn.Parameter):
            super().__setattr__(name, value)  # says that it must be a Parameter
            return
        if value.dtype != STREAM_DTYPES[name]:
            raise TypeError(
                f"{name} of a {type(self).__name__} is a coded stream, not {value.dtype} "
                f"{list(value.shape)}; for a dense weight decompress the module first "
                "(codecllm.decompress_model)"
            )
        self._parameters[name] = as_stream(value)
        self._show_shape()
        self._forget_streams()  # or the old ones would stay alive

    def _share(self, name: str, weight: CodedWeight) -> None:
        """Tying: from now on this module holds the streams of `weight`."""
        if name != "weight" or tuple(weight.shape) != self.matrix_shape:
            raise ValueError(
                f"a coded weight of {list(weight.shape)} cannot become {name} of a module of "
                f"{list(self.matrix_shape)}"
            )
        for part, stream in zip(STREAM_NAMES, weight.streams, strict=True):
            stream = stream if isinstance(stream, nn.Parameter) else Stream(stream)
            setattr(self, part, stream)

    def __delattr__(self, name: str) -> None:
        if name in STREAM_DTYPES and name in self._parameters:
            raise RuntimeError(
                f"{name} of a {type(self).__name__} cannot be taken away or parametrized, it is "
                "coded; decompress the module first (codecllm.decompress_model)"
            )
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name in STREAM_DTYPES and type(param).__name__ == "DTensor":
            raise NotImplementedError(
                f"{name}: a coded stream cannot be cut into a tensor parallel share; shard it with "
                "fully_shard (FSDP2), or parallelize the dense model"
            )
        super().register_parameter(name, param)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True):
        # .half(), .type(t) and the like may move streams, tables and scales, never cast them.
        kept = {id(t) for t in (*self.streams, *(self._buffers[n] for n in _KEPT_BUFFERS))}

        def move(t: torch.Tensor) -> torch.Tensor:
            out = fn(t)
            if id(t) in kept:
                out = (t.to(out.device) if out.dtype != t.dtype else out).detach()
            return out

        ready = self.ready
        super()._apply(move, recurse)
        for stream in self.streams:
            as_stream(stream)
        self._streams_moved(ready)
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._show_shape()  # copies of Parameters come without attributes

    def requires_grad_(self, requires_grad: bool = True):
        """The bias only: streams are integers and stay frozen."""
        for name, parameter in self.named_parameters():
            if name not in STREAM_DTYPES:
                parameter.requires_grad_(requires_grad)
        return self

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        incoming = {n: state_dict.get(prefix + n) for n in STREAM_NAMES}
        there = [n for n, t in incoming.items() if t is not None]
        if there and len(there) < len(STREAM_NAMES):
            error_msgs.append(
                f"{prefix}weight: streams {there} without "
                f"{[n for n in STREAM_NAMES if n not in there]}; was this state saved dense? "
                "Load it into the uncompressed model."
            )
            return
        if there:
            self._make_room(prefix, incoming)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if there and has_bytes(self.weight_head):
            self.rebuild()

    def _make_room(self, prefix: str, incoming: dict[str, torch.Tensor]) -> None:
        """Checks arriving streams and gives the parameters their sizes."""
        if all(map(has_bytes, incoming.values())):
            try:
                coded = CodedMatrix(*(incoming[n].detach() for n in STREAM_NAMES))
                coded.check(checksums=not _checksums_compared.get())
                if coded.shape != self.matrix_shape:
                    raise CorruptStreamError(
                        f"head: a matrix of {list(coded.shape)}, "
                        f"the module has {list(self.matrix_shape)}"
                    )
            except (CorruptStreamError, UnsupportedFormatError) as error:
                raise type(error)(f"{prefix}weight: {error}") from error
        for name, tensor in incoming.items():
            parameter = self._parameters[name]
            assert parameter is not None
            if parameter.shape != tensor.shape:
                with lasting():
                    parameter.data = parameter.new_empty(tensor.shape)


def _as_parameters(
    streams: Streams | StreamHolder | None, device: torch.device | str | None
) -> list[nn.Parameter]:
    """The four Parameters that a module starts with."""
    if isinstance(streams, StreamHolder):
        return list(streams.streams)
    tensors: list[torch.Tensor]
    if streams is None:
        tensors = [torch.empty(0, dtype=dtype, device=device) for dtype in STREAM_DTYPES.values()]
    elif isinstance(streams, CodedMatrix):
        tensors = list(streams.tensors())
    elif isinstance(streams, CodedWeight):
        tensors = list(streams.streams)
    else:
        tensors = [streams[name] for name in STREAM_NAMES]
    # Inference tensors could not be saved for a backward pass.
    with lasting():
        tensors = [t.clone() if t.is_inference() else t for t in tensors]
        return [t if isinstance(t, Stream) else Stream(t) for t in tensors]
