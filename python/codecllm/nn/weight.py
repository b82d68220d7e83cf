"""CodedWeight: a coded matrix that code takes for the dense weight.

Modules keep four streams; this is how they show themselves to code that asks for `module.weight`:
a tensor with the shape and dtype of the dense weight. Products and row look-ups decode on the way;
anything else gets a dense copy that lives as long as the call. It cannot be written to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map_only

from codecllm_ops.codec.coded import CodedMatrix
from codecllm_ops.codec.operand import Operand

from .execution import FUSED, Execution
from .ops import decode
from .streams import Untrained

_T = torch.Tensor
_NO_WRITES = (
    "a coded weight cannot be written to ({}); decompress first (codecllm.decompress_model), "
    "change the dense weight, then compress again"
)


class CodedWeight(Untrained, torch.Tensor):
    """A coded weight [N, K] as a tensor.

    Attributes:
        streams: the four tensors, in the order of STREAM_NAMES.
        operand: what the ops take.
        execution: how products are computed.
        coded_dtype: of the matrix that was coded; None where it is integers and scales.
    """

    streams: tuple[torch.Tensor, ...]
    operand: Operand
    execution: Execution
    coded_dtype: torch.dtype | None
    _transposed: bool

    _is_param = True  # isinstance(w, nn.Parameter): get_parameter, tying and PEFT insist on it
    _is_hf_initialized = True

    @staticmethod
    def __new__(
        cls,
        matrix: CodedMatrix,
        dtype: torch.dtype | None = None,
        execution: Execution = FUSED,
    ) -> CodedWeight:
        """
        Args:
            matrix: its tensors are shared.
            dtype: of the dense weight outside; None: as it was coded, float32 for integers.
        """
        own = None if matrix.scale is not None else matrix.info.fmt.dtype
        return cls._of(
            matrix.tensors(), matrix.operand, dtype or own or torch.float32, execution, own
        )

    @classmethod
    def _of(
        cls,
        streams: tuple[torch.Tensor, ...],
        operand: Operand,
        dtype: torch.dtype,
        execution: Execution,
        coded_dtype: torch.dtype | None,
        transposed: bool = False,
    ) -> CodedWeight:
        rows, cols = operand.rows, operand.cols
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            (cols, rows) if transposed else (rows, cols),
            strides=(1, cols) if transposed else (cols, 1),
            dtype=dtype,
            device=operand.stream.device,
            requires_grad=False,
        )
        self.streams, self.operand, self.execution = streams, operand, execution
        self.coded_dtype, self._transposed = coded_dtype, transposed
        return self

    def _like(self, **changes: Any) -> CodedWeight:
        values = {
            "streams": self.streams,
            "operand": self.operand,
            "dtype": self.dtype,
            "execution": self.execution,
            "coded_dtype": self.coded_dtype,
            "transposed": self._transposed,
        }
        return CodedWeight._of(**{**values, **changes})

    @property
    def coded(self) -> CodedMatrix:
        """The streams as a CodedMatrix, which shares their memory."""
        return CodedMatrix(*(s.data for s in self.streams))

    def dense(self) -> torch.Tensor:
        """A dense copy, of this shape and dtype."""
        dense = decode(self.operand, self.dtype)
        return dense.t() if self._transposed else dense

    def product(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x [..., K] -> x W^T + bias [..., N]; not of a transposed weight."""
        return self.execution.linear(x, self.operand, bias)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [...] -> [..., K]; not of a transposed weight."""
        return self.execution.rows(ids, self.operand, self.dtype)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]  # add_.Tensor
        handler = _HANDLERS.get(func)
        if handler is not None:
            result = handler(*args, **kwargs)
            if result is not NotImplemented:
                return result
        elif name == "__get__" or name in _FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        _refuse_writes(name, args, kwargs)
        args, kwargs = tree_map_only(CodedWeight, CodedWeight.dense, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """For callers that __torch_function__ does not see, as C++."""
        kwargs = kwargs or {}
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return args[0]._like()
        if func._schema.is_mutable:
            _refuse_writes(str(func), args[:1], {"out": kwargs.get("out")}, writes=True)
        args, kwargs = tree_map_only(CodedWeight, CodedWeight.dense, (args, kwargs))
        return func(*args, **kwargs)

    def __tensor_flatten__(self, *args: Any) -> Any:
        """Who traces asks this of inputs; without it he would fail somewhere inside."""
        raise NotImplementedError(
            "torch.compile and torch.export cannot take a CodedWeight as an input; give them the "
            "module, whose streams they take"
        )

    __tensor_unflatten__ = __tensor_flatten__

    def __deepcopy__(self, memo: dict[int, Any]) -> CodedWeight:
        if id(self) not in memo:
            memo[id(self)] = _rebuild(*self._parts([s.data.clone() for s in self.streams]))
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _rebuild, self._parts([s.data for s in self.streams])

    def _parts(self, streams: list[torch.Tensor]) -> tuple[Any, ...]:
        return streams, self.dtype, self.execution, self._transposed

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        bits = 8 * sum(s.numel() * s.element_size() for s in self.streams)
        return (
            f"CodedWeight({list(self.shape)}, dtype={self.dtype}, device={self.device}, "
            f"{self.execution.name}, {bits / max(1, self.numel()):.2f} bits per weight)"
        )


def _rebuild(
    streams: list[torch.Tensor], dtype: torch.dtype, execution: Execution, transposed: bool
) -> CodedWeight:
    weight = CodedWeight(CodedMatrix(*streams), dtype, execution)
    return weight._like(transposed=True) if transposed else weight


def _refuse_writes(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], writes: bool = False
) -> None:
    """Raises RuntimeError if a function of this name would write to a CodedWeight."""
    target = [kwargs.get("out")]
    if writes or name in _WRITERS or (name.endswith("_") and not name.endswith("__")):
        target += [args[:1], kwargs.get("self"), kwargs.get("input"), kwargs.get("tensor")]
    if any(isinstance(t, CodedWeight) for t in tree_leaves(target)):
        raise RuntimeError(_NO_WRITES.format(".data or .grad =" if name == "__set__" else name))


_WRITERS = {"__set__", "__setitem__", "__delitem__", "__iadd__", "__isub__", "__imul__"} | {
    f"__i{op}__" for op in ("truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul")
}

# What a tensor says of itself; the wrapper knows it.
_FACTS = {
    *("dim", "ndimension", "size", "numel", "nelement", "stride", "storage_offset", "__len__"),
    *("is_floating_point", "is_complex", "is_signed", "element_size", "get_device", "is_inference"),
    *("is_contiguous", "is_conj", "is_neg", "has_names", "untyped_storage", "__hash__", "_is_view"),
}


# ---- products and rows --------------------------------------------------------------------------


def _multiplies(x: Any, weight: Any, transposed: bool) -> bool:
    """Whether x and weight multiply as their dense forms would."""
    if type(weight) is not CodedWeight or weight._transposed is not transposed:
        return False
    if not isinstance(x, torch.Tensor) or type(x) is CodedWeight or x.dim() == 0:
        return False
    autocast = torch.is_autocast_enabled(x.device.type)
    return x.is_floating_point() and (x.dtype == weight.dtype or autocast)


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    if type(bias) is CodedWeight or not _multiplies(input, weight, transposed=False):
        return NotImplemented
    return weight.product(input, bias)


def _matmul(a: Any, b: Any, **kwargs: Any) -> Any:
    if kwargs or not _multiplies(a, b, transposed=True):
        return NotImplemented
    return b.product(a)


def _mm(a: Any, b: Any, **kwargs: Any) -> Any:
    return _matmul(a, b, **kwargs) if a.dim() == 2 else NotImplemented


def _rmatmul(b: Any, a: Any) -> Any:
    return _matmul(a, b)


def _rows_of(weight: Any, ids: Any) -> Any:
    if type(weight) is not CodedWeight or weight._transposed or type(ids) is CodedWeight:
        return NotImplemented
    if not isinstance(ids, torch.Tensor) or ids.dtype not in (torch.int64, torch.int32):
        return NotImplemented
    return weight.rows(ids)


def _embedding(
    input: Any,
    weight: Any,
    padding_idx: Any = None,
    max_norm: Any = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    if max_norm is not None:
        raise RuntimeError(_NO_WRITES.format("embedding with max_norm"))
    return _rows_of(weight, input)


def _torch_embedding(weight: Any, indices: Any, *args: Any, **kwargs: Any) -> Any:
    return _rows_of(weight, indices)


# ---- views and copies ---------------------------------------------------------------------------


def _transpose(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self._like(transposed=not self._transposed)


def _transpose_dims(self: Any, *dims: Any) -> Any:
    dims = dims[0] if len(dims) == 1 else dims
    if len(dims) != 2 or not all(isinstance(d, int) and -2 <= d < 2 for d in dims):
        return NotImplemented
    return _transpose(self) if dims[0] % 2 != dims[1] % 2 else self


def _permute(self: Any, *dims: Any) -> Any:
    dims = dims[0] if len(dims) == 1 else dims
    if len(dims) != 2 or not all(isinstance(d, int) and -2 <= d < 2 for d in dims):
        return NotImplemented
    return self if dims[0] % 2 == 0 else _transpose(self)


def _same(self: Any, *args: Any, **kwargs: Any) -> Any:
    return self


def _to(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Another dtype or device, still coded; on meta the first stream, which is what a module has.

    A dtype that rounds is taken from the coded bits, as the dense weight's would be.
    """
    if not isinstance(self, CodedWeight):
        other = next(a for a in (*args, *kwargs.values()) if isinstance(a, CodedWeight))
        return self.to(dtype=other.dtype, device=other.device)
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            return _to(self, value.device, value.dtype)
    device, dtype, *_ = torch._C._nn._parse_to(
        *args, **{k: v for k, v in kwargs.items() if k != "copy"}
    )
    if device is not None and device.type == "meta":
        return self.streams[0].to(device)
    if dtype is not None and dtype != self.dtype and self.dtype != self.coded_dtype:
        return NotImplemented
    if device is not None and device != self.device:
        tensors = [s.data.to(device) for s in self.streams]
        return _rebuild(tensors, dtype or self.dtype, self.execution, self._transposed)
    return self if dtype in (None, self.dtype) else self._like(dtype=dtype)


def _cast(dtype: torch.dtype) -> Callable[..., Any]:
    def cast(self: Any, **kwargs: Any) -> Any:
        return _to(self, dtype)

    return cast


def _type(self: Any, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
    return _to(self, dtype) if isinstance(dtype, torch.dtype) else NotImplemented


def _cuda(self: Any, device: Any = None, *args: Any, **kwargs: Any) -> Any:
    return _to(self, torch.device("cuda" if device is None else device))


def _address(self: Any) -> int:
    """Of the first stream: accelerate knows tied weights by their addresses."""
    return self.streams[0].data_ptr()


def _index(self: Any, ids: Any) -> Any:
    return _rows_of(self, ids)


def _index_select(self: Any, dim: Any = None, index: Any = None, **kwargs: Any) -> Any:
    return _rows_of(self, index) if dim in (0, -2) and not kwargs else NotImplemented


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    F.embedding: _embedding,
    torch.embedding: _torch_embedding,
    torch.matmul: _matmul,
    _T.matmul: _matmul,
    _T.__matmul__: _matmul,
    _T.__rmatmul__: _rmatmul,
    torch.mm: _mm,
    _T.mm: _mm,
    _T.__getitem__: _index,
    torch.index_select: _index_select,
    _T.index_select: _index_select,
    **dict.fromkeys((_T.t, torch.t, _T.T.__get__, _T.mT.__get__, _T.H.__get__), _transpose),
    **dict.fromkeys((_T.transpose, torch.transpose, _T.swapaxes, _T.swapdims), _transpose_dims),
    **dict.fromkeys((_T.permute, torch.permute), _permute),
    **dict.fromkeys(
        (_T.detach, torch.detach, _T.data.__get__, _T.contiguous, _T.share_memory_), _same
    ),
    _T.to: _to,
    _T.type: _type,
    _T.float: _cast(torch.float32),
    _T.half: _cast(torch.float16),
    _T.bfloat16: _cast(torch.bfloat16),
    _T.double: _cast(torch.float64),
    _T.cpu: lambda self, **kwargs: _to(self, torch.device("cpu")),
    _T.cuda: _cuda,
    _T.data_ptr: _address,
}
