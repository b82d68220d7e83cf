"""One matrix: which codings it can have, and into another one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from codecllm_ops.codec.coded import CodedMatrix
from codecllm_ops.codec.codings import room
from codecllm_ops.codec.fixed.encode import usual_tile_cols
from codecllm_ops.codec.fixed.window import sampled_rows
from codecllm_ops.format import FORMATS, Head
from codecllm_ops.format.fixed import FIXED_CODES, MAX_FIXED_BASE
from codecllm_ops.format.segments import Segment
from codecllm_ops.ops import calls

from .codec import Codec, check_matrix
from .coding import AUTO, FIXED, RANS, Choice, Device, Wish, decide, wish

FIXED_FORMAT = "bf16"
MAX_OUTSIDE = 0.005
"""Share of weights outside the window above which a matrix is not made fixed. They take 32 bits
more each: 0.5 % are 0.16 bits per weight. Real weights have 0.01 to 0.25 %."""

_HOPELESS = 4 * MAX_OUTSIDE
"""Share in a sample or a table above which nobody tries: the list of all weights would take twice
the dense matrix."""


_NEVER = 255  # the exponent of inf and NaN, which no window has


def keeps(info: Head) -> str:
    """Why a matrix cannot become fixed, as far as its head tells; "": it can."""
    if info.stored:
        return "stored: coding does not shrink it"
    if info.fmt.name != FIXED_FORMAT:
        return f"{info.fmt.name}: fixed is for {FIXED_FORMAT}"
    return ""


def doubtful(info: Head) -> str:
    """Why a rans matrix probably stays what it is, as far as its tables tell; ""."""
    share = _outside_by_tables(info) if info.coding == RANS else 0.0
    return f"up to {_too_many(share)}" if share > _HOPELESS else ""


def hopeless(coded: CodedMatrix) -> str:
    """Why converting would be in vain, from tables and, where those do not tell, a sample; ""."""
    if not doubtful(coded.info):
        return ""
    rows = torch.from_numpy(sampled_rows(coded.shape[0])).to(coded.device)
    return hopeless_words(calls.rows(rows, coded.operand, None))


def hopeless_dense(weight: torch.Tensor) -> str:
    """The same of a dense weight, bfloat16 [N, K]."""
    return hopeless_words(weight.detach()[torch.from_numpy(sampled_rows(weight.shape[0]))])


def hopeless_words(words: torch.Tensor) -> str:
    """The same of a sample, bfloat16 [*, K]."""
    bits = words.view(torch.int16).flatten().to(torch.int32) & 0x7FFF
    exponents = bits >> 7
    exponents[(exponents == 0) & (bits != 0)] = _NEVER  # subnormals
    counts = torch.bincount(exponents, minlength=256).cpu().numpy()
    share = _outside(counts)
    return _too_many(share) if share > _HOPELESS else ""


def too_many_listed(info: Head) -> str:
    """Why a matrix should not have become fixed; "": it is fine."""
    share = listed(info) / max(1, info.rows * info.cols)
    return _too_many(share) if share > MAX_OUTSIDE else ""


def listed(info: Head) -> int:
    """Weights of a fixed matrix that are outside its windows."""
    return sum(s.listed for s in info.segments)


def _too_many(share: float) -> str:
    return f"{100 * share:.2g} % of its weights are outside the window of fixed"


def _outside(counts: np.ndarray) -> float:
    """Share that no window has of counts [256] by exponent; 0 are zeros, which need none."""
    up_to = np.cumsum(counts)
    bases = np.arange(MAX_FIXED_BASE + 1)
    best = int((up_to[bases + FIXED_CODES] - up_to[bases]).max()) + int(counts[0])
    return 1 - best / max(1, int(counts.sum()))


def _outside_by_tables(info: Head) -> float:
    """At most: escapes may be anything. Tables are of exponents where there is no predictor."""
    share = 0.0
    for segment in info.segments:
        counts = np.zeros(256, np.int64)
        for i in (segment.pairs // 32, segment.pairs % 32):
            np.add.at(counts, segment.window_base + i, segment.freqs)
        counts[_NEVER] += (2 << info.scale_bits) - counts.sum()
        share = max(share, 1.0 if info.predictor else _outside(counts))
    return share


def about_fixed_bytes(info: Head) -> int:
    """What a matrix takes as fixed, runtime table included, without its list: 0.003 to 0.015 bits
    per weight of real ones.
    """
    rows = [s.rows for s in info.segments] or [info.rows]
    head = replace(
        info, coding=FIXED, tile_cols=usual_tile_cols(info.cols), scale_bits=0, len_bits=0,
        predictor=0, segments=tuple(Segment(n, 0) for n in rows),
    )  # fmt: skip
    table = room(FIXED).runtime_table(head).nbytes
    return head.grid.plane_bytes + 4 * head.index_ints + len(head.pack()) + table


def module_wish(codec: Codec, coding: str = AUTO) -> Wish:
    """What is asked for where a module is compressed: an argument, the codec, the surroundings."""
    said = wish(coding, codec.coding)
    if codec.rans_options:
        if said.coding == FIXED:
            raise ValueError(f"{codec.rans_options}: options of rans, not of fixed")
        return Wish(RANS, f"{codec.rans_options}, which rans has alone")
    return said


def encode_module(
    codec: Codec, weight: torch.Tensor, format: str, coding: str = AUTO
) -> tuple[CodedMatrix, str]:
    """The weight of a single module, as it will be multiplied with; and why in this coding.

    Raises:
        UnsupportedFormatError: "fixed" is asked for, and does not exist for this weight.
    """
    said = module_wish(codec, coding)
    if said.demanded:
        return codec.encode_matrix(weight, format, said.coding), said.source
    return encode_chosen(codec, weight, format, decide(said, Device.of(weight.device)))


def encode_chosen(
    codec: Codec, weight: torch.Tensor, format: str, choice: Choice
) -> tuple[CodedMatrix, str]:
    """A weight in the coding chosen for its device, or in rans if it cannot have that; and why."""
    if choice.coding == RANS:
        return codec.encode_matrix(weight, format, RANS), choice.reason
    check_matrix(weight)
    reason = never_fixed(weight.dtype, format) or hopeless_dense(weight)
    if not reason:
        coded = codec.encode_matrix(weight, format, FIXED)
        reason = too_many_listed(coded.info)
        if not reason:
            return coded, choice.reason
    return codec.encode_matrix(weight, format, RANS), reason


def never_fixed(dtype: torch.dtype, format: str) -> str:
    """Why no weight of a dtype becomes fixed in a format (codec.FORMATS); "": it does."""
    if format != "lossless":
        return f"{format}: fixed is for {FIXED_FORMAT}"
    if dtype != FORMATS[FIXED_FORMAT].dtype:
        return f"{str(dtype).removeprefix('torch.')}: fixed is for {FIXED_FORMAT}"
    return ""


def recoded(
    coded: CodedMatrix, coding: str, tile_cols: int | None = None
) -> tuple[CodedMatrix, str]:
    """The matrix in that coding and ""; or itself, and why it keeps its own.

    Args:
        coding: "fixed" or "rans".
        tile_cols: None for the default; a matrix that has the coding already stays as it is.
    """
    if coded.coding == coding:
        return coded, ""
    if (coded.info.stored or coding == FIXED) and (reason := keeps(coded.info)):
        return coded, reason
    if coding == FIXED and (reason := hopeless(coded)):
        return coded, reason
    converted = coded.to(coding, **({"tile_cols": tile_cols} if tile_cols else {}))
    if coding == FIXED and (reason := too_many_listed(converted.info)):
        return coded, reason
    return converted, ""
