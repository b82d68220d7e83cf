"""Look at checkpoint folders without changing them: verify, info, estimate."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import codecllm_ops

from ..nn import Codec
from ..nn.coding import RANS, Choice
from ..nn.recode import encode_chosen
from .checkpoint import REPORT, Checkpoint
from .coding import report_of, report_of_head
from .compress_folder import candidates, file_coding, skeleton_of, skip_pattern
from .folder_files import Meter, Progress, other_files
from .report import CODED, OTHER, SKIPPED, STORED, CompressionReport, LayerReport

_SAMPLE_WEIGHTS = 1 << 19
_SAMPLE_PIECES = 8
_INTS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class VerifyResult:
    """Outcome of verify_checkpoint.

    Attributes:
        mismatches: one sentence per tensor that differs; empty when all bits are equal.
        rounded: coded tensors that are integers and scales: what is compared of them are those, and
            the source was rounded to get them.
    """

    tensors: int
    coded: int
    dense_bytes: int
    seconds: float
    mismatches: tuple[str, ...]
    rounded: int = 0

    @property
    def ok(self) -> bool:
        return not self.mismatches

    def to_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def verify_checkpoint(
    src: Path | str, dst: Path | str | None = None, *, progress: Progress | None = None
) -> VerifyResult:
    """Compares a compressed folder with its source, bit by bit.

    Every coded matrix is decoded. For int8 its integers and scales are compared with those that
    the source is rounded to. All other tensors are compared byte by byte.

    Args:
        src: the original folder, or with `dst` None the compressed one: then checksums are
            compared and everything is decoded once.
        dst: the compressed folder.

    Raises:
        CorruptStreamError: a stream of `dst` is damaged; names file, tensor and field.
        ValueError, FileNotFoundError: not checkpoints of the right kinds.
    """
    start = time.perf_counter()
    if dst is not None and Path(src).exists() and Path(src).resolve() == Path(dst).resolve():
        raise ValueError(
            f"{src} and {dst} are the same folder: give the original first and the compressed one "
            "second, or one folder alone to check that everything in it decodes"
        )
    with Checkpoint(dst if dst is not None else src) as packed:
        if dst is None:
            packed.require_coded()
            return _check_alone(packed, progress, start)
        with Checkpoint(src) as source:
            _require_order(source, packed)
            return _check_against(source, packed, progress, start)


def _require_order(source: Checkpoint, packed: Checkpoint) -> None:
    if not source.coded_names():
        packed.require_coded()
        return
    if packed.coded_names():
        raise ValueError(
            f"{source.folder} and {packed.folder} are both compressed; the original comes first"
        )
    raise ValueError(
        f"{source.folder} is the compressed folder and {packed.folder} the original: the original "
        f"comes first, `codecllm verify {packed.folder} {source.folder}`"
    )


def _check_alone(packed: Checkpoint, progress: Progress | None, start: float) -> VerifyResult:
    coded, meter = packed.coded_names(), Meter(packed, progress)
    nbytes = rounded = 0
    for name in coded:
        nbytes += _nbytes(packed.decode(name))
        rounded += packed.head(name).scale is not None
        meter.add(name, packed.coded_bytes(name))
    seconds = time.perf_counter() - start
    return VerifyResult(len(coded), len(coded), nbytes, seconds, (), rounded)


def _check_against(
    source: Checkpoint, packed: Checkpoint, progress: Progress | None, start: float
) -> VerifyResult:
    coded, meter = packed.coded_names(), Meter(source, progress)
    there = set(coded) | set(packed.dense_names())
    mismatches = [f"{n}: only in {packed.folder}" for n in sorted(there - set(source.where))]
    nbytes = 0
    for name in source.where:
        entry = source.entry(name)
        found = _compare(source, packed, name, name in there)
        if found:
            mismatches.append(found)
        nbytes += entry.nbytes
        meter.add(name, entry.nbytes)
    rounded = sum(packed.head(name).scale is not None for name in coded)
    seconds = time.perf_counter() - start
    return VerifyResult(len(source.where), len(coded), nbytes, seconds, tuple(mismatches), rounded)


def _nbytes(t: torch.Tensor) -> int:
    return t.numel() * t.element_size()


def _compare(source: Checkpoint, packed: Checkpoint, name: str, there: bool) -> str:
    """A sentence about the first difference, or ""."""
    if not there:
        return f"{name}: missing in {packed.folder}"
    expected = source.read(name)
    if not packed.is_coded(name):
        return first_difference(name, expected, packed.read(name))
    info = packed.head(name)
    if info.scale is None:
        return first_difference(name, expected, packed.decode(name))
    per = "row" if info.scale.size > 1 or info.rows == 1 else "tensor"
    if expected.dim() != 2:
        return f"{name}: shape {list(expected.shape)} was coded as {[info.rows, info.cols]}"
    q, scale = codecllm_ops.quantize_int8(expected, per=per)
    return first_difference(name, q, packed.decode(name)) or first_difference(
        f"{name} (scale)", scale.reshape(-1), torch.from_numpy(info.scale)
    )


def first_difference(name: str, expected: torch.Tensor, found: torch.Tensor) -> str:
    """A sentence naming the first coordinate whose bits differ, or "" if none does."""
    if expected.dtype != found.dtype or expected.shape != found.shape:
        return (
            f"{name}: {found.dtype} {list(found.shape)}, "
            f"expected {expected.dtype} {list(expected.shape)}"
        )
    as_int = _INTS[expected.element_size()]
    a, b = (t.contiguous().reshape(-1).view(as_int) for t in (expected, found))
    if torch.equal(a, b):
        return ""
    differs = a != b
    at = int(differs.nonzero()[0])
    where = [int(i) for i in torch.unravel_index(torch.tensor(at), expected.shape)]
    mask = (1 << 8 * expected.element_size()) - 1
    return (
        f"{name}: {int(differs.sum())} of {a.numel()} differ, first at {where}: "
        f"{int(b[at]) & mask:#x} instead of {int(a[at]) & mask:#x}"
    )


def checkpoint_info(folder: Path | str) -> CompressionReport:
    """Sizes of every tensor of a folder, from headers only; dense folders work too."""
    with Checkpoint(folder) as source:
        layers = []
        for name in source.coded_names():
            info = source.head(name)
            layers.append(
                LayerReport.of(
                    name,
                    (info.rows, info.cols),
                    info.fmt.dtype,
                    CODED,
                    coded_bytes=source.coded_bytes(name),
                    **report_of_head(info, source.coded_bytes(name)),
                )
            )
        for name in source.dense_names():
            e = source.entry(name)
            layers.append(LayerReport.of(name, e.shape, e.torch_dtype, OTHER))
        version = source.quantization.get("version")
        layers.sort(key=lambda layer: layer.name)
        has_report = (source.folder / REPORT).is_file()
        extra = {"version": version, "shards": len(source.files), "report": has_report}
        return CompressionReport("codecllm" if version else "dense", tuple(layers), 0.0, extra)


def estimate_checkpoint(
    src: Path | str,
    *,
    format: str = "lossless",
    codec: Codec | None = None,
    coding: str = RANS,
    skip: str | Sequence[str] = (),
    progress: Progress | None = None,
) -> CompressionReport:
    """What compress_checkpoint would reach, from a sample of every matrix; writes nothing.

    A sample is up to 512 Ki weights in 8 pieces of whole tile rows. Its planes and index are
    scaled up, its head (about the same for any size) is not.
    """
    codec = replace(codec or Codec(), coding=file_coding(coding))
    start = time.perf_counter()
    pattern: re.Pattern[str] | None = skip_pattern(skip)
    layers = []
    with Checkpoint(src) as source:
        source.require_dense()
        meter = Meter(source, progress)
        skeleton, unknown = skeleton_of(source)
        plan = candidates(source, pattern, skeleton)
        for name in source.where:
            if name in plan and plan[name] is None:
                layers.append(_estimated(source, name, codec, format))
            else:
                entry, status = source.entry(name), SKIPPED if name in plan else OTHER
                reason = plan.get(name) or ""
                layers.append(
                    LayerReport.of(name, entry.shape, entry.torch_dtype, status, reason=reason)
                )
            meter.add(name, source.entry(name).nbytes)
        left_out = other_files(source)[1]
    extra = {
        "estimate": True,
        "wall_seconds": time.perf_counter() - start,
        "left_out": left_out,
        **({} if skeleton else {"memory_unknown": unknown}),
    }
    # No seconds: a rate in MiB/s would be that of a sample.
    memory = skeleton.memory(layers) if skeleton else None
    return CompressionReport(format, tuple(layers), 0.0, extra, memory)


def _estimated(source: Checkpoint, name: str, codec: Codec, format: str) -> LayerReport:
    """What would become of a tensor that is coded."""
    entry = source.entry(name)
    layer = partial(LayerReport.of, name, entry.shape, entry.torch_dtype)
    coded = encode_chosen(codec, _sample(source, name), format, Choice(codec.coding, ""))[0]
    info = coded.info
    scales = 0 if info.scale is None else 4 * (entry.shape[0] - info.rows)
    head = coded.head.numel()
    size = int((coded.nbytes - head) * entry.shape[0] / info.rows) + head + max(0, scales)
    if size >= entry.nbytes:
        return layer(STORED, reason="coding does not shrink it")
    said = report_of(coded)
    if said["memory_coding"] == info.coding:
        said["memory_bytes"] += size - coded.nbytes
    else:
        said["memory_bytes"] = said["memory_bytes"] * entry.shape[0] // info.rows
    return layer(CODED, coded_bytes=size, **said)


def _sample(source: Checkpoint, name: str) -> torch.Tensor:
    """Up to 8 pieces of whole tile rows, evenly spread."""
    rows, cols = source.entry(name).shape
    wanted = max(16 * _SAMPLE_PIECES, _SAMPLE_WEIGHTS // cols)
    if rows <= wanted:
        return source.read(name)
    piece = max(16, wanted // _SAMPLE_PIECES // 16 * 16)
    step = (rows - piece) // (_SAMPLE_PIECES - 1)
    starts = [i * step for i in range(_SAMPLE_PIECES)]
    return torch.cat([source.read(name, slice(s, s + piece)) for s in starts])
