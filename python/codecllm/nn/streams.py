"""What compressed modules share: four streams as parameters, runtime tables as buffers.

READ ME FIRST
1. Streams are parameters, not buffers: device maps offload parameters only, and DDP broadcasts
   buffers in every forward. They need no gradient and must never be cast.
2. `weight` is the 1-D coded plane. Code that expects the dense matrix there fails by its shape.
3. Streams have sizes that depend on the data: loading resizes them, in place, because a tied
   module holds the same Parameter object.
4. Slot tables follow from `weight_head`. They are built when streams arrive, never in forward
   under compile or CUDA graph capture.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import codecllm_ops
from codecllm_ops.codec.coded import CodedMatrix, pack_layout
from codecllm_ops.codec.tables import runtime_table
from codecllm_ops.format import CorruptStreamError, Head

STREAM_DTYPES = {
    "weight": torch.uint8,
    "weight_raw": torch.uint8,
    "weight_index": torch.int32,
    "weight_head": torch.uint8,
}
STREAM_NAMES = tuple(STREAM_DTYPES)
_KEPT_BUFFERS = ("weight_table", "weight_scale")


@dataclass
class Statistics:
    """What a module did since statistics were switched on.

    Attributes:
        calls: forwards.
        vectors: rows of x, or ids, over all calls.
        seconds: wall time inside the op, with the device synchronised before and after.
    """

    calls: int = 0
    vectors: int = 0
    seconds: float = 0.0


class CodedModule(nn.Module):
    """Mixin of CompressedLinear and CompressedEmbedding: rows x cols weights as coded streams."""

    weight: nn.Parameter  # uint8 [*]
    weight_raw: nn.Parameter  # uint8 [*]
    weight_index: nn.Parameter  # int32 [*]
    weight_head: nn.Parameter  # uint8 [*]
    weight_table: torch.Tensor  # int32 [segments, 8 + 2^scale_bits]
    weight_scale: torch.Tensor | None  # float32 [1] or [rows]
    exact: bool
    dtype_like: torch.Tensor  # [0], carries the dense dtype through .half() and .to(dtype)
    statistics: Statistics | None

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """rows, cols of the dense weight."""
        raise NotImplementedError

    def _init_streams(
        self,
        streams: dict[str, torch.Tensor] | CodedModule | None,
        dense_dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        """Registers streams and buffers.

        Args:
            streams: tensors by stream name; a module whose Parameters become shared; or None for
                empty ones that a loader fills.
            dense_dtype: dtype of the dense weight outside: what decompress() returns for formats
                with scales, and what an embedding puts out.
        """
        for name, dtype in STREAM_DTYPES.items():
            if isinstance(streams, CodedModule):
                parameter = getattr(streams, name)
            else:
                data = streams[name] if streams else torch.empty(0, dtype=dtype, device=device)
                parameter = nn.Parameter(data, requires_grad=False)
            self.register_parameter(name, parameter)
        device = self.weight.device
        like = torch.empty(0, dtype=dense_dtype, device=device)
        self.register_buffer("dtype_like", like, persistent=False)
        table = torch.empty(0, dtype=torch.int32, device=device)
        self.register_buffer("weight_table", table, persistent=False)
        self.register_buffer("weight_scale", None, persistent=False)
        self._layout: int | None = None
        self.statistics = None
        # transformers would otherwise draw normal numbers into uint8 when streams are offloaded.
        self._is_hf_initialized = True
        if streams is not None and not self.weight.is_meta:
            self.rebuild()

    @property
    def dense_dtype(self) -> torch.dtype:
        return self.dtype_like.dtype

    @property
    def coded(self) -> CodedMatrix:
        """The streams as a CodedMatrix; it shares their memory."""
        return CodedMatrix(*(getattr(self, n).detach() for n in STREAM_NAMES))

    @property
    def ready(self) -> bool:
        """Whether the runtime tables belong to the streams that are there."""
        return self._layout is not None

    def rebuild(self, head: Head | None = None) -> None:
        """Builds table and scale from the head.

        Args:
            head: by default that of the streams, which must not be on the meta device then.

        Raises:
            CorruptStreamError: the head is malformed, or of another matrix than this module's.
        """
        if head is None:
            head = self.coded.info
        if (head.rows, head.cols) != self.matrix_shape:
            raise CorruptStreamError(
                f"head: a matrix of {[head.rows, head.cols]}, "
                f"the module has {list(self.matrix_shape)}"
            )
        # dtype_like is never offloaded: it is where the module computes.
        device = self.dtype_like.device if self.weight.is_meta else self.weight.device
        self.weight_table = torch.from_numpy(runtime_table(head)).to(device)
        self.weight_scale = None if head.scale is None else torch.from_numpy(head.scale).to(device)
        self._layout = pack_layout(head)

    def decode(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The dense weight [rows, cols].

        Args:
            dtype: None for the coded bits: the original weight, or for int8 the integers.
        """
        if self._layout is None:
            self.rebuild()
        rows, cols = self.matrix_shape
        return torch.ops.codecllm.decode(
            self.weight,
            self.weight_raw,
            self.weight_index,
            self.weight_table,
            self.weight_scale,
            rows,
            cols,
            self._layout,
            dtype,
        )

    def dense_weight(self) -> torch.Tensor:
        """[rows, cols]: the original bits for lossless formats, integer * scale for int8."""
        return self.decode(None if self.coded.info.scale is None else self.dense_dtype)

    def _counted(self, vectors: int, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Runs and adds to the statistics. Eager only: it reads the clock."""
        synchronize = torch.cuda.synchronize if self.weight.is_cuda else lambda: None
        synchronize()
        start = time.perf_counter()
        out = run()
        synchronize()
        assert self.statistics is not None
        self.statistics.calls += 1
        self.statistics.vectors += vectors
        self.statistics.seconds += time.perf_counter() - start
        return out

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in STREAM_DTYPES:
            super().__setattr__("_layout", None)  # the tables are those of other streams now

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True):
        # .half(), .type(t) and the like may move streams, tables and scales, never cast them.
        kept = {id(getattr(self, n)) for n in (*STREAM_NAMES, *_KEPT_BUFFERS)}

        def move(t: torch.Tensor) -> torch.Tensor:
            out = fn(t)
            if id(t) in kept and out.dtype != t.dtype:
                return t.to(out.device)
            return out

        ready = self._layout
        super()._apply(move, recurse)
        self._layout = None if self.weight.is_meta else ready
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
        if there and not self.weight.is_meta:
            self.rebuild()

    def _make_room(self, prefix: str, incoming: dict[str, torch.Tensor]) -> None:
        """Checks arriving streams and gives the parameters their sizes."""
        if not any(t.is_meta for t in incoming.values()):
            try:
                coded = CodedMatrix(*(incoming[n].detach() for n in STREAM_NAMES)).check(False)
                if coded.shape != self.matrix_shape:
                    raise CorruptStreamError(
                        f"head: a matrix of {list(coded.shape)}, "
                        f"the module has {list(self.matrix_shape)}"
                    )
            except (CorruptStreamError, codecllm_ops.UnsupportedFormatError) as error:
                raise type(error)(f"{prefix}weight: {error}") from error
        for name, tensor in incoming.items():
            parameter = getattr(self, name)
            if parameter.shape != tensor.shape:
                parameter.data = parameter.new_empty(tensor.shape)


def sync_tables(model: nn.Module) -> None:
    """Rebuilds the tables of all compressed modules whose streams were replaced."""
    for module in model.modules():
        if isinstance(module, CodedModule) and not module.ready and not module.weight.is_meta:
            module.rebuild()


def set_exact(model: nn.Module, exact: bool = True) -> None:
    """Switches all compressed modules of a model between exact and fused."""
    for module in model.modules():
        if isinstance(module, CodedModule):
            module.exact = exact


def set_statistics(model: nn.Module, on: bool = True) -> None:
    """Gives all compressed modules of a model new counters, or takes them away."""
    for module in model.modules():
        if isinstance(module, CodedModule):
            module.statistics = Statistics() if on else None
