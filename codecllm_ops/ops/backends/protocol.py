"""What a backend is."""

from __future__ import annotations

from typing import Any

import torch

from ...codec.operand import Operand
from ...codec.rans.encoder import EncoderKernels


class Backend:
    """A way to run the ops on one kind of device. Operands are checked for dtypes, scales and
    devices before they come here; sizes and contents are the backend's to check.

    Attributes:
        name: what CODECLLM_BACKEND and use_backend() call it.
        dispatch_key: of compiled kernels that the dispatcher calls itself: their decode_linear is
            registered under it, and is put aside while another backend is wanted.
        fuses: whether decode_linear is implemented.
    """

    name: str
    dispatch_key: str | None = None
    fuses = False
    encoder: EncoderKernels | None = None

    def handles(self, device_type: str) -> bool:
        """Whether an explicit wish for this backend is about "cpu", "cuda", ..."""
        raise NotImplementedError

    def volunteers(self, device_type: str) -> bool:
        """Whether `auto` may take it for tensors of that kind of device."""
        return self.handles(device_type)

    def problem(self) -> str | None:
        """What stands in the way in this process, or None. May load a library."""
        return None

    def absence(self) -> str | None:
        """The same, and what a device lacks; looks at what is cheap first. For `auto`."""
        return self.problem()

    def demanded(self) -> str | None:
        """The same for an explicit wish: the most telling reason first."""
        return self.absence()

    def problem_on(self, device: torch.device) -> str | None:
        """Why it does not run on one device although it runs in general, or None."""
        return None

    def set_check(self, on: bool) -> None:
        """Whether corrupt streams raise on a GPU, at the price of waiting for it."""

    def details(self) -> dict[str, Any]:
        """What backend_info() adds while this backend runs."""
        return {}

    def decode_into(self, coded: Operand, out: torch.Tensor) -> None:
        """Fills `out`, uint8 [rows, cols * word bytes], contiguous and not empty.

        Raises:
            CorruptStreamError, or RuntimeError with the word "corrupt".
        """
        raise NotImplementedError

    def decode_rows_words(self, ids: torch.Tensor, coded: Operand) -> torch.Tensor:
        """Rows `ids` (int64 [n]) as uint8 [n, cols * word bytes].

        Raises:
            IndexError, or RuntimeError with "is out of range"; a GPU that is not waited for gives
            rows of all ones instead.
        """
        raise NotImplementedError

    def decode_linear(
        self, x: torch.Tensor, coded: Operand, bias: torch.Tensor | None
    ) -> torch.Tensor | None:
        """x [..., cols] to [..., rows]; None leaves a case to decode and GEMM."""
        raise NotImplementedError

    def to_fixed(
        self, coded: Operand, segment_rows: list[int], bases: list[int], tile_cols: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The matrix, bf16 in any coding, as coding fixed: plane and list (uint8 [*]), and ends
        (int32 [tiles]). Here in pure torch, from rows that the backend decodes.

        Args:
            segment_rows, bases: rows and window of each segment.

        Raises:
            CorruptStreamError, or RuntimeError with the word "corrupt".
            ValueError (compiled kernels: RuntimeError): 2^31 weights or more outside the windows.
        """
        # Here, because the package `reference` holds a Backend itself.
        from .reference.fixed import from_rows

        return from_rows(
            lambda ids: self.decode_rows_words(ids, coded),
            segment_rows, coded.cols, bases, tile_cols, coded.stream.device,
        )  # fmt: skip

    def lying_tile(self, coded: Operand) -> int:
        """First tile of a fixed matrix whose codes or list say what no encoder says, or -1. Sizes
        and the index are right. Here in pure torch.
        """
        from .reference.fixed import lying_tile

        return lying_tile(coded)
