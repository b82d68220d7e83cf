"""Codec and CompressedTensor: encode any tensor, keep it coded, get its bits back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import codecllm_ops
from codecllm_ops.codec.coded import CodedMatrix
from codecllm_ops.codec.rans.encoder import check_options
from codecllm_ops.format.head import MAX_FIXED_TILE_COLS

from .coding import AUTO, FIXED, check_wish


def _lossless(weight: torch.Tensor, **options: Any) -> CodedMatrix:
    return codecllm_ops.encode(weight, **options)


def _int8_per_row(weight: torch.Tensor, **options: Any) -> CodedMatrix:
    q, scale = codecllm_ops.quantize_int8(weight, per="row")
    return codecllm_ops.encode(q, scale=scale, **options)


def _int8_per_tensor(weight: torch.Tensor, **options: Any) -> CodedMatrix:
    q, scale = codecllm_ops.quantize_int8(weight, per="tensor")
    return codecllm_ops.encode(q, scale=scale, **options)


FORMATS: dict[str, Callable[..., CodedMatrix]] = {
    "lossless": _lossless,
    "int8": _int8_per_row,
    "int8-tensor": _int8_per_tensor,
}
"""What `format=` may name: a function from a dense weight [N, K] to its coded matrix."""


def check_format(name: str) -> str:
    """Returns `name`, or raises ValueError when no format is called that."""
    if name not in FORMATS:
        raise ValueError(f"format {name!r} is unknown; known: {', '.join(FORMATS)}")
    return name


def check_matrix(weight: torch.Tensor) -> None:
    """Raises ValueError unless a tensor is a matrix with values."""
    if weight.dim() != 2:
        raise ValueError(f"a coded matrix has two dimensions, not {list(weight.shape)}")
    if weight.is_meta:
        raise ValueError("a tensor on the meta device has no values to encode; load it first")


def _require_backend(backend: str) -> None:
    if backend != "auto":
        info = codecllm_ops.backend_info()
        running = [info[device] for device in ("cpu", "cuda") if info.get(device)]
        if backend not in running:
            raise codecllm_ops.BackendUnavailableError(
                f"backend {backend!r} does not run here, {' and '.join(running)} does; "
                "CODECLLM_BACKEND chooses (`codecllm doctor` shows what is there)"
            )


@dataclass(frozen=True)
class Codec:
    """How tensors are coded. Holds options only, so that it is cheap to make and safe to share.

    Attributes:
        backend: "auto", or the name of the backend that must be there.
        tile_cols: columns of a tile, a multiple of 16; None lets the encoder choose.
        scale_bits: precision of the frequencies, 8 to 11.
        predictor: "none", "left", or "auto" (the smaller of both, measured).
        coding: "fixed", "rans" or "auto": what is best where a module multiplies with it
            (coding.py), and "rans", the smallest, for a tensor that is only kept.

    Raises:
        ValueError: an option out of range.
        BackendUnavailableError: the demanded backend is not the one that runs here.
    """

    backend: str = "auto"
    tile_cols: int | None = None
    scale_bits: int = 11
    predictor: str = "none"
    coding: str = AUTO

    def __post_init__(self) -> None:
        check_options(self.tile_cols, self.scale_bits, self.predictor)
        if check_wish(self.coding) == FIXED and self.rans_options:
            raise ValueError(f"{self.rans_options}: options of rans, fixed has none of them")
        _require_backend(self.backend)

    @property
    def rans_options(self) -> str:
        """Options that say something about rans alone, in words; "" if all are as by default."""
        plain: dict[str, Any] = {"scale_bits": 11, "predictor": "none"}
        found: dict[str, Any] = {name: getattr(self, name) for name in plain}
        if (self.tile_cols or 0) > MAX_FIXED_TILE_COLS:
            plain["tile_cols"], found["tile_cols"] = 0, self.tile_cols
        return ", ".join(f"{k}={v}" for k, v in found.items() if v != plain[k])

    def encode_matrix(
        self, weight: torch.Tensor, format: str = "lossless", coding: str | None = None
    ) -> CodedMatrix:
        """Codes a matrix.

        Args:
            weight: [N, K] of a coded dtype, on any device.
            format: a name in FORMATS.
            coding: "rans" or "fixed"; None: this codec's, of which "auto" is "rans" here.

        Returns:
            The coded matrix, on the device of `weight`.

        Raises:
            ValueError: unknown format, not two dimensions, or a meta tensor.
            UnsupportedFormatError: no weight format codes this dtype, or "fixed" does not.
        """
        check_matrix(weight)
        encode = FORMATS[check_format(format)]
        options: dict[str, Any] = {"tile_cols": self.tile_cols}
        if (coding or self.coding) == FIXED:
            options["coding"] = FIXED
        else:
            options |= {"scale_bits": self.scale_bits, "predictor": self.predictor}
        coded = encode(weight.detach(), **options)
        return coded if coded.device == weight.device else coded.to(weight.device)

    def encode(
        self, tensor: torch.Tensor, format: str = "lossless", **options: Any
    ) -> CompressedTensor:
        """Codes a tensor of any shape; `options` replace those of this codec."""
        codec = Codec(**{**self.__dict__, **options}) if options else self
        return CompressedTensor(codec, tensor, format)

    def decode(
        self, compressed: CompressedTensor, device: torch.device | str | None = None
    ) -> torch.Tensor:
        """Same as `compressed.decompress(device)`."""
        return compressed.decompress(device)

    def info(self) -> dict[str, Any]:
        """Which backend runs and why, and the options of this codec."""
        return {**codecllm_ops.backend_info(), "options": dict(self.__dict__)}


def load_codec(backend: str = "auto", **options: Any) -> Codec:
    """The codec of this machine.

    Args:
        backend: "auto" takes the fastest there is. Any other name is a demand.
        options: tile_cols, scale_bits, predictor, coding; see Codec.

    Raises:
        BackendUnavailableError: the demanded backend is not the one that runs here.
    """
    return Codec(backend=backend, **options)


class CompressedTensor:
    """A tensor kept coded, on a CPU or a GPU.

    The tensor is seen as a matrix: dimension 0 becomes rows, all others together columns.
    """

    def __init__(self, codec: Codec | None, tensor: torch.Tensor, format: str = "lossless") -> None:
        """Codes `tensor`; it is not referenced afterwards.

        Args:
            codec: None for the default one.
            tensor: any shape, of a coded dtype.
            format: "lossless", "int8" (a scale per row) or "int8-tensor" (one scale).
        """
        rows = tensor.shape[0] if tensor.dim() > 1 else 1
        matrix = tensor.detach().reshape(rows, -1) if tensor.numel() else _empty_matrix(tensor)
        self.coded = (codec or Codec()).encode_matrix(matrix, format)
        self.format = format
        self._shape, self._dtype = tensor.shape, tensor.dtype

    @property
    def shape(self) -> torch.Size:
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor that was coded, and of what decompress() returns."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self.coded.device

    @property
    def nbytes(self) -> int:
        """All that is kept, in bytes: planes, index, tables, scales, checksums."""
        return self.coded.nbytes

    @property
    def coding(self) -> str:
        """What it is kept in: "rans", "fixed" or "stored"."""
        return self.coded.coding

    @property
    def ratio(self) -> float:
        """Bytes of the dense tensor / bytes kept."""
        return self._shape.numel() * self._dtype.itemsize / self.nbytes

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / max(1, self._shape.numel())

    def decompress(self, device: torch.device | str | None = None) -> torch.Tensor:
        """The dense tensor [shape] of `dtype`: the original bits, or integer * scale for int8."""
        coded = self.coded if device is None else self.coded.to(device)
        return codecllm_ops.decode(coded, self._dtype).reshape(self._shape)

    def to(self, device: torch.device | str) -> CompressedTensor:
        """The same tensor on another device; self where it is there already."""
        if torch.device(device) == self.device:
            return self
        moved = object.__new__(CompressedTensor)
        moved.__dict__.update(self.__dict__, coded=self.coded.to(device))
        return moved

    def __repr__(self) -> str:
        return (
            f"CompressedTensor(shape={list(self.shape)}, dtype={self.dtype}, "
            f"format={self.format!r}, coding={self.coding!r}, "
            f"bits_per_weight={self.bits_per_weight:.2f})"
        )


def _empty_matrix(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().new_empty(0, max(1, tensor.shape[-1] if tensor.dim() > 1 else 1))
