"""What compressed modules share: four streams as parameters, runtime tables as buffers.

READ ME FIRST
1. Streams are parameters, not buffers: device maps offload parameters only, and DDP broadcasts
   buffers in every forward. They need no gradient and must never be cast.
2. `weight` is the 1-D coded plane. Code that expects the dense matrix there fails by its shape.
3. Streams have sizes that depend on the data: loading resizes them, in place, because a tied
   module holds the same Parameter object.
4. Slot tables follow from `weight_head`. They are built when streams arrive, never in forward
   under compile or CUDA graph capture.
5. Streams may be replaced behind the module's back (`_parameters`, `.data`). Every eager forward
   looks whether the head is still the one of the tables: see _TablesOf for what that notices.
   After anything else, and before compiled code runs again: sync_tables(model).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import codecllm_ops
from codecllm_ops.codec.coded import CodedMatrix, lasting, pack_layout
from codecllm_ops.codec.tables import runtime_table
from codecllm_ops.format import CorruptStreamError, Head
from codecllm_ops.ops.functional import translated

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


class _TablesOf:
    """The head that tables were built from.

    The head's own checksum, its bytes 60..63, stands for all of it and for the other streams. On
    the CPU it is compared in every forward. On a GPU that would wait for the device, so only memory
    and version are: `.data.copy_()` changes neither and goes unnoticed there.
    """

    def __init__(self, head: torch.Tensor) -> None:
        with lasting():
            # Keeps the memory alive: as long as it is, no other tensor has this address.
            self._memory = head.detach()
            crc = self._memory[60:64].cpu().numpy()
        self.crc = crc.tobytes()
        self._crc_now = None if head.is_cuda else crc
        self._pointer, self._version = head.data_ptr(), _version(head)

    def unchanged(self, head: torch.Tensor) -> bool:
        """0.3 us: whether the head is the same, as far as the host can see."""
        return (
            head.data_ptr() == self._pointer
            and _version(head) == self._version
            and (self._crc_now is None or self._crc_now.tobytes() == self.crc)
        )

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()  # a copy of the module looks at its own head


def _version(t: torch.Tensor) -> int:
    return 0 if t.is_inference() else t._version  # inference tensors count no versions


def _nothing() -> None:
    return None


_checksums_compared = ContextVar("checksums_compared", default=False)


@contextmanager
def checksums_compared() -> Iterator[None]:
    """load_state_dict in here leaves checksums out: for callers that have compared them already."""
    token = _checksums_compared.set(True)
    try:
        yield
    finally:
        _checksums_compared.reset(token)


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
        self._tables_of: _TablesOf | None = None
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
        if self._layout is None or self._tables_of is None:
            return self._layout is not None
        head = self.weight_head
        return head.is_meta or self._tables_of.unchanged(head)

    def rebuild(self, head: Head | None = None) -> None:
        """Builds table and scale from the head.

        Args:
            head: by default that of the streams, which must not be on the meta device then.

        Raises:
            CorruptStreamError: the head is malformed, or of another matrix than this module's.
        """
        own = head is None
        if head is None:
            head = self.coded.info
        if (head.rows, head.cols) != self.matrix_shape:
            raise CorruptStreamError(
                f"head: a matrix of {[head.rows, head.cols]}, "
                f"the module has {list(self.matrix_shape)}"
            )
        # dtype_like is never offloaded: it is where the module computes.
        device = self.dtype_like.device if self.weight.is_meta else self.weight.device
        with lasting():
            self.weight_table = torch.from_numpy(runtime_table(head)).to(device)
            scale = head.scale
            self.weight_scale = None if scale is None else torch.from_numpy(scale).to(device)
        self._layout = pack_layout(head)
        self._tables_of = _TablesOf(self.weight_head) if own else None

    def _prepare(self) -> None:
        """Before every use: tables that belong to the streams. What it notices: see _TablesOf."""
        if self._layout is None:
            self.rebuild()
        elif not torch.compiler.is_compiling():
            head, tables_of = self._parameters["weight_head"], self._tables_of
            if tables_of is None or not tables_of.unchanged(head):
                self._look_at(head)

    def _look_at(self, head: torch.Tensor) -> None:
        # Fakes, subclasses and wrappers of transforms have no bytes that could be compared.
        if type(head) not in (nn.Parameter, torch.Tensor) or head.is_meta:
            return
        if torch._C._functorch.is_functorch_wrapped_tensor(head):
            return
        found = _TablesOf(head)  # offloaded streams come as new tensors each time, with equal bytes
        if self._tables_of is not None and found.crc == self._tables_of.crc:
            self._tables_of = found
        else:
            self.rebuild()

    def decode(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The dense weight [rows, cols].

        Args:
            dtype: None for the coded bits: the original weight, or for int8 the integers.
        """
        self._prepare()
        rows, cols = self.matrix_shape
        return translated(
            torch.ops.codecllm.decode,
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
        """[rows, cols] of the dense dtype: in that of the original its bits; int8 times scale."""
        return self.decode(self.dense_dtype)

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

        ready = self._layout if self.ready else None
        super()._apply(move, recurse)
        self._layout = None if self.weight.is_meta else ready
        return self

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
        if there and not self.weight.is_meta:
            self.rebuild()

    def _make_room(self, prefix: str, incoming: dict[str, torch.Tensor]) -> None:
        """Checks arriving streams and gives the parameters their sizes."""
        if not any(t.is_meta for t in incoming.values()):
            try:
                coded = CodedMatrix(*(incoming[n].detach() for n in STREAM_NAMES))
                coded.check(checksums=not _checksums_compared.get())
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
    """Rebuilds the tables of all compressed modules that have streams, replaced or not."""
    for module in model.modules():
        if isinstance(module, CodedModule) and not module.weight.is_meta:
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
