"""CompressedLinear: an nn.Linear that keeps its weight coded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .codec import Codec
from .execution import exact_or_fused
from .holder import Streams
from .module import CodedModule


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
        coding: str = "auto",
        exact: bool = False,
        statistics: bool = False,
    ) -> None:
        """Codes the weight of `linear`; the bias is taken over, not copied.

        Raises:
            ValueError: unknown format, or the weight is on the meta device.
            UnsupportedFormatError: no weight format codes the weight's dtype.
        """
        self._code(linear, codec, format, coding, exact_or_fused(exact), statistics)

    @classmethod
    def from_streams(
        cls,
        in_features: int,
        out_features: int,
        streams: Streams | CodedModule | None,
        *,
        bias: nn.Parameter | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
        exact: bool = False,
    ) -> CompressedLinear:
        """A layer of streams that exist already, or of none yet.

        Args:
            streams: the four tensors by name, a CodedMatrix or a CodedWeight; a module to share
                Parameters with (tied weights); or None, then a loader fills them.
            bias: [out_features] or None.
            dtype: of the dense weight outside.
        """
        options = {"in_features": in_features, "out_features": out_features, "bias": bias}
        return cls._made(options, streams, dtype, exact_or_fused(exact), device)

    @staticmethod
    def _options_of(dense: nn.Module) -> dict[str, Any]:
        return {name: getattr(dense, name) for name in ("in_features", "out_features", "bias")}

    def _set_up(self, in_features: int, out_features: int, bias: nn.Parameter | None) -> None:
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("bias", bias)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] -> [..., out_features], of the dtype of x."""
        started = None if self.statistics is None else self._started()
        # The dictionary, for nn.Module.__getattr__ takes as long as half the op.
        bias = self._parameters["bias"]
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(x.dtype)
        y = self.execution.linear(x, self.operand(), bias)
        if started is not None:
            self._count(started, x.numel() // max(1, self.in_features))
        return y

    def _dense_without_weight(self) -> nn.Linear:
        dense = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        dense.register_parameter("bias", self.bias)
        return dense

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, exact={self.exact}"
        )
