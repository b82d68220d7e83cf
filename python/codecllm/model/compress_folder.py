"""Compress a checkpoint folder into another one. Shard by shard; no weights are loaded.

Where transformers is there, the model is built on the meta device: only it knows which tensors an
nn.Linear reads, and what else will be in memory.

Memory: a worker holds one dense tensor and its coded form, so the peak is `jobs` times the largest
tensor's few copies, whatever the size of a shard.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..nn import Codec
from ..nn.codec import check_format
from ..nn.coding import FIXED, RANS, Choice, wish
from ..nn.recode import encode_chosen, never_fixed
from .checkpoint import REPORT, Checkpoint, is_candidate, refusal
from .coding import report_of
from .config_file import VERSION, compressed_config
from .folder_files import (
    Meter,
    Progress,
    copy_files,
    other_files,
    refuse_nesting,
    write_index,
)
from .job import Job
from .model_card import write_card
from .report import CODED, OTHER, SKIPPED, STORED, CompressionReport, LayerReport
from .skeleton import Skeleton, build_skeleton
from .tensor_file import Item, TensorFile, write_tensors, write_text
from .threads import in_threads
from .workspace import Workspace, require_replaceable


def compress_checkpoint(
    src: Path | str,
    dst: Path | str,
    *,
    format: str = "lossless",
    codec: Codec | None = None,
    coding: str = RANS,
    skip: str | Sequence[str] = (),
    jobs: int = 1,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> CompressionReport:
    """Compresses a checkpoint folder into another one that transformers can load.

    Two-dimensional floating `*.weight` tensors are coded, all others copied. config.json gets a
    `quantization_config`, README.md a section on how to load it; tokenizer and other files are
    copied, weights of other kinds (`original/*.pth`, `onnx/`) are not. Checkpoints in fp8 with
    scales are coded as they are; transformers loads them decoded (`mode="disk"`).

    Args:
        src: folder with safetensors.
        dst: appears when everything is written.
        coding: "rans" is smallest, and converted where it is loaded; "fixed" is 12 bits for bf16
            and loads by mapping. What cannot gain from "fixed" is rans.
        skip: regular expressions; tensors whose name has a match stay dense.
        jobs: tensors that are encoded at the same time.
        force: replace `dst`, or start an unfinished run again.
        resume: go on with an unfinished run; a finished one is left as it is.

    Raises:
        FileExistsError: `dst` is there and neither force nor resume was said, or it is damaged, or
            the unfinished run had another source or other options.
        ValueError: nothing to compress, a wrong kind of checkpoint, or a bad argument.
        CorruptStreamError: a shard is malformed.
        OSError: the disk is full or read-only; the finished part is kept for resume.
    """
    check_format(format)
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; at least 1 is needed")
    pattern = skip_pattern(skip)
    codec, dst = replace(codec or Codec(), coding=file_coding(coding)), Path(dst)
    start = time.perf_counter()
    require_replaceable(dst)
    with Checkpoint(src) as source:
        source.require_dense()
        if source.is_fp8 and format != "lossless":
            raise ValueError(
                f"{source.folder} is quantized to fp8, which is coded as it is: format {format!r} "
                "would round it again"
            )
        refuse_nesting(source.folder, dst)
        skeleton, unknown = skeleton_of(source)
        plan = _plan(source, pattern, skeleton)
        if coding == FIXED:
            _require_fixed(source, plan, format)
        others, left_out = other_files(source)
        options = {"format": format, "skip": pattern and pattern.pattern, **codec.__dict__}
        job = Job.of("compress", source, options)
        if resume and (done := finished(dst, job, force)) is not None:
            return done
        with Workspace(dst, job, force=force, resume=resume) as work:
            layers: list[LayerReport] = []
            meter = Meter(source, progress)
            weight_map: dict[str, str] = {}
            for shard, file in source.files.items():
                result = work.finished_shard(shard)
                if result is None:
                    rows = _compress_shard(work, file, plan, codec, format, jobs, meter)
                    result = [asdict(row) for row in rows]
                    work.finish_shard(shard, result)
                    for row in rows:
                        work.spool.drop(row.name)
                else:
                    meter.add(shard, sum(e.nbytes for e in file.entries.values()))
                layers += map(LayerReport.from_dict, result)
                with TensorFile(work.folder / shard) as written:
                    weight_map.update(dict.fromkeys(written.entries, shard))
            if not any(row.status == CODED for row in layers):
                work.discard()
                raise ValueError(f"{source.folder}: no tensor shrinks, nothing was written")
            sizes = {shard: (work.folder / shard).stat().st_size for shard in source.files}
            report = CompressionReport(
                format,
                tuple(layers),
                time.perf_counter() - start,
                {
                    "options": options,
                    "source": job.files,
                    "shards": sizes,
                    "left_out": left_out,
                    **({} if skeleton else {"memory_unknown": unknown}),
                },
                skeleton.memory(layers) if skeleton else None,
            )
            copy_files(others, work.folder)
            _write_rest(work, source, report, weight_map, len(source.files) > 1)
            work.publish()
    return report


def file_coding(coding: str) -> str:
    """Returns `coding`, or raises ValueError: of files "auto" would say nothing.

    Also where the surroundings ask for no coding that there is: reports say what will be in memory.
    """
    wish()
    if coding not in (RANS, FIXED):
        raise ValueError(f'coding {coding!r} is not one that files have: "rans" or "fixed"')
    return coding


def _require_fixed(source: Checkpoint, plan: dict[str, str | None], format: str) -> None:
    dtypes = {source.entry(name).torch_dtype for name, reason in plan.items() if reason is None}
    reasons = {never_fixed(dtype, format) for dtype in dtypes}
    if "" not in reasons:
        raise ValueError(
            f'{source.folder}: coding "fixed" is asked for, and no weight can have it: '
            f"{'; '.join(sorted(reasons))}"
        )


def _plan(
    source: Checkpoint, skip: re.Pattern[str] | None, skeleton: Skeleton | None
) -> dict[str, str | None]:
    """Candidates by name: why not to code it, or None."""
    plan = candidates(source, skip, skeleton)
    if None not in plan.values():
        reasons = (
            "; ".join(sorted({r for r in plan.values() if r})) or "no two-dimensional *.weight"
        )
        raise ValueError(f"{source.folder}: no compressible tensor ({reasons})")
    return plan


def skeleton_of(source: Checkpoint) -> tuple[Skeleton | None, str]:
    """As build_skeleton(); none of a quantized original, whose modules never get streams."""
    if source.is_fp8:
        return None, "an fp8 original is decoded while it loads, and is the plain model then"
    return build_skeleton(source.folder)


def candidates(
    source: Checkpoint, skip: re.Pattern[str] | None, skeleton: Skeleton | None
) -> dict[str, str | None]:
    """Candidates by name: why not to code it, or None. Names tell, or the skeleton."""
    model_type = str(source.config.get("model_type", ""))
    plan: dict[str, str | None] = {}
    for name in source.where:
        entry = source.entry(name)
        if not is_candidate(entry):
            continue
        plan[name] = refusal(entry, model_type, skip, loads_coded=not source.is_fp8)
        if plan[name] is None and skeleton is not None:
            plan[name] = skeleton.refusal(name)
    return plan


def _compress_shard(
    work: Workspace,
    file: TensorFile,
    plan: dict[str, str | None],
    codec: Codec,
    format: str,
    jobs: int,
    meter: Meter,
) -> list[LayerReport]:
    """Encodes the tensors of a shard into the spool, then assembles the new shard from it."""

    def code(name: str) -> dict[str, Any] | None:
        """Puts a matrix into the spool, unless it would not shrink; what the report says of it."""
        coded = work.spool.kept(name)
        if coded is None:
            coded = encode_chosen(codec, file.read(name), format, Choice(codec.coding, ""))[0]
            if coded.nbytes >= file.entries[name].nbytes:
                return None
            work.spool.put(name, coded)
        return report_of(coded)

    names = [name for name in file.entries if name in plan and plan[name] is None]
    in_spool: dict[str, dict[str, Any] | None] = {}
    for name, known in in_threads(jobs, code, names):
        in_spool[name] = known
        meter.add(name, file.entries[name].nbytes)
    items: list[Item] = []
    layers: list[LayerReport] = []
    for name, entry in file.entries.items():
        layer = partial(LayerReport.of, name, entry.shape, entry.torch_dtype)
        if coded := in_spool.get(name):
            streams = work.spool.items(name)
            items += streams
            layers.append(layer(CODED, coded_bytes=sum(i.nbytes for i in streams), **coded))
            continue
        items.append(file.item(name))
        if name in in_spool:
            layers.append(layer(STORED, reason="coding does not shrink it"))
        else:
            layers.append(layer(SKIPPED if name in plan else OTHER, reason=plan.get(name) or ""))
            meter.add(name, entry.nbytes)
    notes = {**file.notes, "format": "pt", "codecllm_version": str(VERSION)}
    write_tensors(work.folder / file.path.name, items, notes)
    return layers


def _write_rest(
    work: Workspace,
    source: Checkpoint,
    report: CompressionReport,
    weight_map: dict[str, str],
    sharded: bool,
) -> None:
    if sharded:
        write_index(work.folder, weight_map, report.coded_bytes, source)
    dense = sorted(
        row.name.removesuffix(".weight")
        for row in report.of(SKIPPED, STORED)
        if row.name.endswith(".weight") and len(row.shape) == 2
    )
    config = source.config
    if config:
        config = compressed_config(config, dense)
        write_text(work.folder / "config.json", json.dumps(config, indent=2) + "\n")
        write_card(work.folder, config)
    write_text(work.folder / REPORT, report.to_json() + "\n")


def skip_pattern(skip: str | Sequence[str]) -> re.Pattern[str] | None:
    """One pattern of several, None of none. Raises ValueError for a bad one."""
    patterns = [skip] if isinstance(skip, str) else list(skip)
    try:
        return re.compile("|".join(f"(?:{p})" for p in patterns)) if patterns else None
    except re.error as error:
        raise ValueError(f"--skip {patterns}: not a regular expression: {error}") from error


def finished(dst: Path, job: Job, force: bool) -> CompressionReport | None:
    """The report of a run that got to its end with the same source and options.

    Raises:
        FileExistsError: its result has lost something since, and force was not said.
    """
    try:
        data = json.loads((dst / REPORT).read_text(encoding="utf-8"))
        report = CompressionReport.from_dict(data)
        same = (data["options"], data["source"]) == (job.options, job.files)
        expected = dict(data["shards"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not same:
        return None
    for shard, size in expected.items():
        path = dst / shard
        found = path.stat().st_size if path.is_file() else None
        if found == size:
            continue
        if force:
            return None
        state = "is missing" if found is None else f"has {found} bytes instead of {size}"
        raise FileExistsError(f"{dst} was finished, but {shard} {state}; --force writes it again")
    return report
