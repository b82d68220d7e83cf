"""CompressedLinear: an nn.Linear that keeps its weight coded."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from codecllm_ops.ops.functional import translated

from .codec import Codec
from .streams import STREAM_NAMES, CodedModule, Statistics


class CompressedLinear(CodedModule, nn.Linear):
    """y = x W^T + b with W decoded inside the matmul. Drop-in for nn.Linear.

    The weight is frozen; gradients flow to x and to the bias.

    Attributes:
        exact: decode, then F.linear: equal to the dense layer bit by bit, and a dense copy of the
            weight exists during the call. Otherwise results differ by the order of summation.
        statistics: None, or counters that every forward updates (eager mode only).
    """

    def __init__(
        self,
        linear: nn.Linear,
        codec: Codec | None = None,
        format: str = "lossless",
        *,
        exact: bool = False,
        statistics: bool = False,
    ) -> None:
        """Codes the weight of `linear`; the bias is taken over, not copied.

        Raises:
            ValueError: unknown format, or the weight is on the meta device.
            UnsupportedFormatError: no weight format codes the weight's dtype.
        """
        coded = (codec or Codec()).encode_matrix(linear.weight, format)
        streams = dict(zip(STREAM_NAMES, coded.tensors(), strict=True))
        self._set_up(linear.in_features, linear.out_features, linear.bias, exact)
        self._init_streams(streams, linear.weight.dtype)
        self.training = linear.training
        self.statistics = Statistics() if statistics else None

    @classmethod
    def from_streams(
        cls,
        in_features: int,
        out_features: int,
        streams: dict[str, torch.Tensor] | CodedModule | None,
        *,
        bias: nn.Parameter | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
        exact: bool = False,
    ) -> CompressedLinear:
        """A layer of streams that exist already, or of none yet.

        Args:
            streams: the four tensors by name; a module to share Parameters with (tied weights);
                or None, then a loader fills them.
            bias: [out_features] or None.
            dtype: of the dense weight outside.
        """
        self = cls.__new__(cls)
        self._set_up(in_features, out_features, bias, exact)
        self._init_streams(streams, dtype, device)
        return self

    def _set_up(
        self, in_features: int, out_features: int, bias: nn.Parameter | None, exact: bool
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("bias", bias)
        self.exact = exact

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def reset_parameters(self) -> None:
        """Nothing to reset: the weight is coded."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] -> [..., out_features], of the dtype of x."""
        self._prepare()
        if self.statistics is not None:
            vectors = x.numel() // max(1, self.in_features)
            return self._counted(vectors, lambda: self._multiply(x))
        return self._multiply(x)

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_floating_point():
            raise TypeError(
                f"x is {x.dtype}: does the model cast x to weight.dtype? Coded weights are uint8; "
                "leave this layer dense (should_compress, --skip)"
            )
        bias = self._parameters["bias"]
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(x.dtype)
        if self.exact:
            return F.linear(x, self.decode(x.dtype), bias)
        return translated(torch.ops.codecllm.decode_linear, x, *self._operand(), bias)

    def decompress(self) -> nn.Linear:
        """The dense layer, with this layer's bias (the same Parameter)."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self.dense_weight())
        linear.register_parameter("bias", self.bias)
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, exact={self.exact}"
        )
