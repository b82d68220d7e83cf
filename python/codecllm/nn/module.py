"""What compressed modules share: runtime tables beside the streams, and what ops take of both.

READ ME FIRST
1. Streams are parameters, not buffers: device maps offload parameters only, and DDP broadcasts
   buffers in every forward. They need no gradient and must never be cast.
2. `module.weight` is a CodedWeight, which looks like the dense matrix. The Parameter of that name,
   the 1-D coded plane, is `module.streams[0]`. Where that has no memory to decode (on meta,
   sharded), `module.weight` is the Parameter itself.
3. Streams have sizes that depend on the data: loading resizes them, in place, because a tied
   module holds the same Parameter object.
4. Ops get an operand: the streams, and runtime tables that follow from the head. Tables are built
   when streams arrive. A forward on a GPU never builds one, copies or waits, also where streams
   have moved: equal sizes there mean the same matrix.
5. Streams may be replaced behind the module's back (`_parameters`, `.data`): see operand() for what
   that notices. After anything else, and before compiled code runs again: sync_tables(model).
"""

from __future__ import annotations

import time
import weakref
from typing import Any, Self

import torch
from torch import nn

from codecllm_ops.codec.coded import CodedMatrix, lasting
from codecllm_ops.codec.operand import Operand
from codecllm_ops.format import CorruptStreamError, Head

from .codec import Codec
from .execution import EXACT, FUSED, Execution, exact_or_fused
from .holder import StreamHolder, Streams
from .ops import Coded, checking, decode
from .recode import encode_module
from .statistics import Statistics
from .streams import (
    STREAM_DTYPES,
    STREAM_NAMES,
    align,
    checksum,
    checksum_of,
    checksum_word,
    has_bytes,
    mark_dynamic,
    on_host,
    parse_head,
)
from .weight import CodedWeight


class CodedModule(StreamHolder):
    """Mixin of CompressedLinear and CompressedEmbedding: rows x cols weights as coded streams."""

    weight_table: torch.Tensor  # int32 [segments, *]: what the coding keeps at run time
    weight_scale: torch.Tensor | None  # float32 [1] or [rows]
    dtype_like: torch.Tensor  # [0], carries the dense dtype through .half() and .to(dtype)
    execution: Execution
    statistics: Statistics | None
    coding_reason: str  # why the weight has the coding that it has, for people

    _head: Head | None  # of the matrix that the tables are of
    _layout: int
    _index_shape: tuple[int, int]
    _known: tuple[int, ...]  # its checksum and the sizes of its streams
    _live: tuple[Any, ...] | None  # what the host saw of the streams, and the rest of the operand
    _operand: Operand | None  # for compiled code

    @staticmethod
    def _options_of(dense: nn.Module) -> dict[str, Any]:
        """What _set_up() wants to know of a dense module."""
        raise NotImplementedError

    def _set_up(self, **options: Any) -> None:
        """Sets the attributes of the dense base class."""
        raise NotImplementedError

    def _dense_without_weight(self) -> nn.Module:
        """The dense module with its weight on meta."""
        raise NotImplementedError

    def _code(
        self,
        dense: nn.Module,
        codec: Codec | None,
        format: str,
        coding: str,
        execution: Execution,
        statistics: bool,
    ) -> None:
        """Becomes the compressed form of `dense`."""
        weight = dense.weight
        assert isinstance(weight, torch.Tensor)
        coded, why = encode_module(codec or Codec(), weight, format, coding)
        self._fill(self._options_of(dense), coded, weight.dtype, execution)
        self.coding_reason = why
        self.training = dense.training
        self.statistics = Statistics() if statistics else None

    @classmethod
    def _made(
        cls,
        options: dict[str, Any],
        streams: Streams | CodedModule | None,
        dtype: torch.dtype,
        execution: Execution = FUSED,
        device: torch.device | str | None = None,
    ) -> Self:
        self = cls.__new__(cls)
        self._fill(options, streams, dtype, execution, device)
        return self

    def _fill(
        self,
        options: dict[str, Any],
        streams: Streams | CodedModule | None,
        dense_dtype: torch.dtype,
        execution: Execution,
        device: torch.device | str | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.execution = execution
        self._set_up(**options)
        self._init_streams(streams, dense_dtype, device)

    def reset_parameters(self) -> None:
        """Nothing to reset: the weight is coded."""

    def _init_streams(
        self,
        streams: Streams | CodedModule | None,
        dense_dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> None:
        """Registers streams and buffers.

        Args:
            streams: what the module is filled with; a module whose Parameters become shared; or
                None for empty ones that a loader fills.
            dense_dtype: dtype of the dense weight outside: what decompress() returns, and what an
                embedding puts out.
        """
        self._head = self._operand = self._live = self.statistics = None
        self.coding_reason = ""
        self._known = ()
        self._hold(streams, device)
        device = self.streams[0].device
        like = torch.empty(0, dtype=dense_dtype, device=device)
        self.register_buffer("dtype_like", like, persistent=False)
        table = torch.empty(0, dtype=torch.int32, device=device)
        self.register_buffer("weight_table", table, persistent=False)
        self.register_buffer("weight_scale", None, persistent=False)
        # transformers would otherwise draw normal numbers into uint8 when streams are offloaded.
        self._is_hf_initialized = True
        if streams is not None and has_bytes(self.weight_head):
            self.rebuild()

    # ---- what is there --------------------------------------------------------------------------

    @property
    def weight(self) -> torch.Tensor:
        """The coded weight [rows, cols], or the Parameter where there is nothing to decode."""
        if "_parameters" not in self.__dict__ or "weight" not in self._parameters:
            raise AttributeError(f"{type(self).__name__} has no weight yet")
        if torch.compiler.is_compiling():
            return self.dense_weight()
        if not all(map(has_bytes, self.streams)):
            return self.streams[0]
        try:
            return self._face()
        except AttributeError as error:  # nn.Module would look for the name elsewhere
            raise RuntimeError(f"codecllm: {error}") from error

    def _face(self) -> CodedWeight:
        """One object as long as somebody holds it: tied modules have one weight."""
        streams, operand = self.streams, Operand(*self.operand())
        if operand.stream is not streams[0]:  # replaced in between, by another thread
            return self._face()
        stream = streams[0]
        assert self._head is not None
        where = tuple(s.data_ptr() for s in streams)
        key = (where, self._known[0], self.dense_dtype, self.execution)
        known, before = getattr(stream, "_face", (None, None))
        face = before() if known == key and before is not None else None
        if face is None:
            own = None if operand.scale is not None else self._head.fmt.dtype
            face = CodedWeight._of(streams, operand, self.dense_dtype, self.execution, own)
            # Weak: what the face holds would outlive streams that are moved away.
            stream._face = key, weakref.ref(face)  # type: ignore[attr-defined]
        return face

    @property
    def dense_dtype(self) -> torch.dtype:
        return self.dtype_like.dtype

    @property
    def exact(self) -> bool:
        """Whether outputs equal the dense module's bit by bit; see Execution."""
        return self.execution is EXACT

    @exact.setter
    def exact(self, exact: bool) -> None:
        self.execution = exact_or_fused(exact)

    @property
    def coded(self) -> CodedMatrix:
        """The streams as a CodedMatrix; it shares their memory."""
        return CodedMatrix(*(s.detach() for s in self.streams))

    @property
    def coding(self) -> str:
        """What the streams hold: "fixed", "rans" or "stored"; "" where there are none yet."""
        return "" if self._head is None else self._head.coding

    @property
    def ready(self) -> bool:
        """Whether the runtime tables belong to the streams that are there."""
        if self._head is None:
            return False
        return not has_bytes(self.weight_head) or self._is_known()

    # ---- tables and operand ---------------------------------------------------------------------

    def rebuild(self, head: Head | None = None) -> None:
        """Builds table, scale and operand.

        Args:
            head: by default that of the streams, which must not be on the meta device then.

        Raises:
            CorruptStreamError: the head is malformed, or of another matrix than this module's.
        """
        here = has_bytes(self.weight_head)
        if head is None:
            head = parse_head(self.weight_head)
        if (head.rows, head.cols) != self.matrix_shape:
            raise CorruptStreamError(
                f"head: a matrix of {[head.rows, head.cols]}, "
                f"the module has {list(self.matrix_shape)}"
            )
        if self._head is not None and self._head.coding != head.coding:
            self.coding_reason = "as it was loaded"
        # dtype_like is never offloaded: it is where the module computes.
        device = self.weight_head.device if here else self.dtype_like.device
        of_head = _without_streams(head, device)
        self.weight_table, self.weight_scale = of_head.table, of_head.scale
        self._head, self._layout, self._index_shape = head, of_head.layout, head.index_shape
        if here:
            sizes = tuple(stream.numel() for stream in self.streams)
            self._known = checksum(self.weight_head), *sizes
        else:
            packed = head.pack()
            sizes = head.stream_bytes, head.raw_bytes, head.index_ints, len(packed)
            self._known = checksum_of(packed), *sizes
        self._forget_streams()
        if here:
            self._settle()

    def operand(self) -> Coded:
        """What the ops take, in the order of an Operand.

        Every eager call looks where head and index are, and on the CPU at the checksum in the head,
        which stands for all four: 0.5 us. On a GPU that would wait for the device, so streams of
        the same sizes are taken for the same matrix.
        """
        if torch.compiler.is_compiling():
            loose = self._operand is None or torch.compiler.is_exporting()
            return self._loose_operand() if loose else self._operand
        live = self._live
        if live is not None:
            head, index, crc, now, others = live
            p = self._parameters
            try:
                if (
                    p["weight_head"].data_ptr() == head  # type: ignore[union-attr]
                    and p["weight_index"].data_ptr() == index  # type: ignore[union-attr]
                    and (now is None or now.value == crc)
                ):
                    return p["weight"], p["weight_raw"], *others
            except RuntimeError:  # fakes and wrappers of transforms have no address
                pass
        return self._look_again()

    def _look_again(self) -> Coded:
        if not all(map(has_bytes, self.streams)):
            return self._loose_operand()
        if self._is_known():
            self._see_streams()
        else:
            self.rebuild()
        return self.operand()

    def _is_known(self) -> bool:
        """Whether these are the streams that the tables are of, as far as the host can see."""
        if self._head is None or tuple(s.numel() for s in self.streams) != self._known[1:]:
            return False
        look = on_host(self.weight_head) or checking()
        return not look or checksum(self.weight_head) == self._known[0]

    def _see_streams(self) -> None:
        """Takes the streams that are there for those of the tables.

        What is kept between eager calls holds no memory of streams but the index, 0.4 % of them:
        who moves streams away (accelerate, diffusers) wants it back.
        """
        assert self._head is not None
        self._operand = None
        with lasting():
            for stream in self.streams:
                align(stream)
            index, head = self.weight_index.data.view(self._index_shape), self.weight_head
            table, scale = self._buffers["weight_table"], self._buffers["weight_scale"]
            assert table is not None
            if table.device != head.device:
                table = self.weight_table = table.to(head.device)
                scale = self.weight_scale = None if scale is None else scale.to(head.device)
            now = checksum_word(head) if on_host(head) else None
            others = index, table, scale, *self.matrix_shape, self._layout
            # In one assignment, because other threads read it.
            self._live = head.data_ptr(), index.data_ptr(), self._known[0], now, others

    def _settle(self) -> None:
        """For streams that stay: compiled code gets views that are no Parameters, because sizes of
        Parameters would be compiled in, and each layer would be another graph.
        """
        self._see_streams()
        assert self._live is not None
        stream, raw, others = self.streams[0].data, self.streams[1].data, self._live[-1]
        for t in (stream, raw, others[0]):
            mark_dynamic(t)
        self._operand = Operand(stream, raw, *others)

    def _loose_operand(self) -> Operand:
        """Of streams that are fakes, wrapped by transforms, exported, sharded or on meta."""
        if self._head is None:
            raise RuntimeError("codecllm: this module has no streams yet; load them first")
        stream, raw, index, _ = self.streams
        index = index.view(self._index_shape)
        p = self._buffers
        return Operand(
            stream, raw, index, p["weight_table"], p["weight_scale"], *self.matrix_shape,
            self._layout,
        )  # fmt: skip

    def replace_streams(self, streams: tuple[nn.Parameter, ...]) -> None:
        """Takes four others at once: a forward in another thread has the old ones or the new ones.

        Raises:
            CorruptStreamError: as rebuild(); then nothing has changed.
        """
        twin = object.__new__(type(self))
        own = {name: dict(self.__dict__[name]) for name in ("_parameters", "_buffers")}
        twin.__dict__.update(self.__dict__, **own)
        for name, stream in zip(STREAM_NAMES, streams, strict=True):
            setattr(twin, name, stream)
        twin.rebuild()
        before = dict(self.__dict__)  # frees nothing in the middle of the next step
        self.__dict__.update({k: v for k, v in twin.__dict__.items() if before.get(k) is not v})

    def _forget_streams(self) -> None:
        self.__dict__["_operand"] = self.__dict__["_live"] = None

    def _streams_moved(self, ready: bool) -> None:
        self._forget_streams()
        if not ready or self.weight_head.is_meta:
            self._head = None
        elif all(map(has_bytes, self.streams)):
            self._settle()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_operand": None, "_live": None}  # of this process's memory

    # ---- the weight, dense ----------------------------------------------------------------------

    def decode(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The dense weight [rows, cols].

        Args:
            dtype: None for the coded bits: the original weight, or for int8 the integers.
        """
        return decode(self.operand(), dtype)

    def dense_weight(self) -> torch.Tensor:
        """[rows, cols] of the dense dtype: the original bits as long as that is the coded one."""
        return self.decode(self.dense_dtype)

    def decompress(self) -> nn.Module:
        """The dense module; what it shares with this one (a bias) is the same Parameter."""
        dense = self._dense_without_weight()
        dense.weight = nn.Parameter(self.dense_weight())
        return dense.train(self.training)

    def _started(self) -> float:
        """The time before an op that is counted. Eager only: it waits for the device."""
        if self.streams[0].is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def _count(self, started: float, vectors: int) -> None:
        seconds = self._started() - started
        assert self.statistics is not None
        self.statistics.calls += 1
        self.statistics.vectors += vectors
        self.statistics.seconds += seconds


def _without_streams(head: Head, device: torch.device) -> CodedMatrix:
    """For what follows from a head alone."""
    matrix = CodedMatrix(*(torch.empty(0, dtype=d, device=device) for d in STREAM_DTYPES.values()))
    matrix.__dict__["info"] = head
    return matrix
