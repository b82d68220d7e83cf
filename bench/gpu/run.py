"""Checks and times the kernels on a GPU, CUDA and Triton: builds nothing, wants no network.

    python bench/gpu/run.py OUT [--quick]

1. the GPU tests (tests/gpu), 2. compute-sanitizer's memcheck and racecheck on small shapes,
3. times, of the codings rans and fixed. OUT gets logs and `results.json`, in the form of
bench/results/; a table is printed last. Under eight minutes on an H200 is the aim.

How it measures: decode_linear of every backend and F.linear (bf16) in one process, taken in turns;
every call of a round reads other copies of the weights, together several times the second-level
cache; a round is one CUDA graph, so that launches cost all sides the same; medians of rounds, timed
with events.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

import codecllm_ops as ops

ROOT = Path(__file__).parents[2]
LLAMA_8B = [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336), (128256, 4096)]
LLAMA_70B = [(8192, 8192), (28672, 8192)]
ROWS_OF_X = [1, 2, 4, 8, 16, 32, 64]
COLD_BYTES = 256 << 20  # several times the second-level cache of any GPU

SANITIZED = """
import os, torch, codecllm_ops as ops
ops.use_backend(os.environ["BACKEND"])
for fmt in (torch.bfloat16, torch.float8_e5m2, torch.int8):
    w = (torch.randn(40, 200) * 40).to(fmt) if fmt == torch.int8 else torch.randn(40, 200).to(fmt)
    matrices = [ops.encode(w, tile_cols=64, allow_stored=False).to("cuda")]
    if fmt == torch.bfloat16:  # made by the kernels: of rans, and of a dense matrix with a list
        w[::3, ::5] *= 2.0**30
        dense = ops.encode(w.cuda(), coding="fixed", tile_cols=80, allow_stored=False)
        matrices += [matrices[0].to("fixed", tile_cols=48), dense]
    for coded in matrices:
        ops.decode(coded)
        ops.decode_rows(torch.tensor([0, 39, 5], device="cuda"), coded)
        for m in (1, 9, 33):
            for dtype in (torch.bfloat16, torch.float32):
                ops.decode_linear(torch.randn(m, 200, device="cuda").to(dtype), coded)
torch.cuda.synchronize()
"""


# ---- correctness --------------------------------------------------------------------------------


def run_tests(out: Path) -> str:
    log = out / "tests.log"
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"],
            cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    last = log.read_text().strip().splitlines()[-1]
    return f"exit {done.returncode}: {last}"


def sanitize(out: Path, tool: str, backend: str) -> str:
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        return "compute-sanitizer is not here"
    script = out / "sanitized.py"
    script.write_text(SANITIZED)
    done = subprocess.run(
        [program, "--tool", tool, "--error-exitcode", "9", sys.executable, script],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"BACKEND": backend, "CODECLLM_AUTOTUNE": "0"},
    )  # fmt: skip
    (out / f"{tool}-{backend}.log").write_text(done.stdout + done.stderr)
    lines = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
    return f"exit {done.returncode}: {lines[-1].strip('= ') if lines else 'no summary'}"


# ---- times --------------------------------------------------------------------------------------


def graph_of(calls) -> torch.cuda.CUDAGraph:
    for call in calls:  # what a first call does besides (tables, library handles) stays out
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def alternate(*rounds_of_calls, rounds: int) -> list[float]:
    """Median microseconds per call of each list of calls, its rounds taken in turns."""
    graphs = [graph_of(calls) for calls in rounds_of_calls]
    times: list[list[float]] = [[] for _ in graphs]
    for _ in range(rounds + 2):
        for graph, calls, taken in zip(graphs, rounds_of_calls, times, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            taken.append(begin.elapsed_time(end) * 1e3 / len(calls))
    return [statistics.median(t[2:]) for t in times]


def copies_of(coded: ops.CodedMatrix, count: int) -> list[ops.CodedMatrix]:
    return [
        ops.CodedMatrix(coded.stream.clone(), coded.raw.clone(), coded.index.clone(), coded.head)
        for _ in range(count)
    ]


def encoded(rows: int, cols: int, fmt: torch.dtype, **options) -> ops.CodedMatrix:
    """A coded normal matrix on the GPU."""
    generator = torch.Generator().manual_seed(rows + cols)
    block = 0.02 * torch.randn(min(rows, 4096), cols, generator=generator)
    w, scale = block.repeat(-(-rows // len(block)), 1)[:rows], None
    if fmt == torch.int8:
        w, scale = ops.quantize_int8(w)
    return ops.encode(w.to(fmt), scale=scale, **options).to("cuda")


def backends() -> list[str]:
    found = []
    for name in ("cuda", "triton"):
        with contextlib.suppress(ops.BackendUnavailableError):
            ops.use_backend(name)
            found.append(name)
    ops.use_backend("auto")
    return found


def on(backend: str, call):
    """The call on a backend. (A graph is captured once, so the switch costs no time.)"""

    def switched():
        before = ops.use_backend(backend)
        call()
        ops.use_backend(before)

    return switched


def time_shape(rows, cols, fmt, rows_of_x, rounds, coding="rans") -> list[dict]:
    coded = encoded(rows, cols, fmt, coding=coding)
    count = max(2, math.ceil(COLD_BYTES / coded.nbytes))
    matrices = copies_of(coded, count)
    dense = [
        torch.randn(rows, cols, dtype=torch.bfloat16, device="cuda") * 0.02
        for _ in range(max(2, math.ceil(COLD_BYTES / (2 * rows * cols))))
    ]
    names, found = backends(), []
    for m in rows_of_x:
        x = torch.randn(m, cols, dtype=torch.bfloat16, device="cuda")
        fused = [
            [on(name, lambda x=x, c=c: ops.decode_linear(x, c)) for c in matrices] for name in names
        ]
        library = [lambda x=x, w=w: torch.nn.functional.linear(x, w) for w in dense]
        *micros, reference = alternate(*fused, library, rounds=rounds)
        for name, taken in zip(names, micros, strict=True):
            found.append(
                {"backend": name, "coding": coding, "shape": [rows, cols],
                 "format": str(fmt)[6:], "m": m,
                 "bits_per_weight": round(8 * coded.nbytes / (rows * cols), 3),
                 "decode_linear_us": round(taken, 2), "linear_bf16_us": round(reference, 2),
                 "of_linear_speed": round(reference / taken, 3)}
            )  # fmt: skip
    return found


def time_decode(rows, cols, fmt, rounds, coding="rans") -> list[dict]:
    coded = encoded(rows, cols, fmt, coding=coding)
    matrices = copies_of(coded, max(2, math.ceil(COLD_BYTES / coded.nbytes)))
    names = backends()
    calls = [[on(name, lambda c=c: ops.decode(c)) for c in matrices] for name in names]
    written = rows * cols * fmt.itemsize
    return [
        {"backend": name, "coding": coding, "shape": [rows, cols], "format": str(fmt)[6:],
         "decode_us": round(micros, 2), "TB/s written": round(written / micros / 1e6, 3)}
        for name, micros in zip(names, alternate(*calls, rounds=rounds), strict=True)
    ]  # fmt: skip


def time_conversions(rows, cols, rounds) -> list[dict]:
    """To fixed, as at load: each call waits for the GPU, so that nothing is captured."""
    rans = encoded(rows, cols, torch.bfloat16)
    dense = ops.decode(rans)
    found = []
    for name in backends():
        before = ops.use_backend(name)
        for source, call in (
            ("rans", lambda: rans.to("fixed")),
            ("dense", lambda: ops.encode(dense, coding="fixed", allow_stored=False)),
        ):
            taken = []
            for _ in range(rounds + 1):
                torch.cuda.synchronize()
                begin = time.perf_counter()
                call()
                torch.cuda.synchronize()
                taken.append(time.perf_counter() - begin)
            found.append(
                {"backend": name, "from": source, "shape": [rows, cols],
                 "ms": round(1e3 * statistics.median(taken[1:]), 3)}
            )  # fmt: skip
        ops.use_backend(before)
    return found


def copy_bandwidth() -> float:
    """TB/s read and written by a large copy: the ceiling."""
    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    (micros,) = alternate([lambda: b.copy_(a)] * 4, rounds=5)
    return round(2 * a.numel() / micros / 1e6, 3)


# ---- report -------------------------------------------------------------------------------------


def geometric_mean(values) -> float:
    values = list(values)
    return math.exp(statistics.fmean(math.log(v) for v in values)) if values else math.nan


def print_tables(report: dict) -> None:
    print("\ndecode_linear against bf16 F.linear (speed ratio)")
    linear = report["results"]["decode_linear"]
    rows_of_x = sorted({r["m"] for r in linear})
    print(f"{'backend coding format':26} {'shape':>14} " + " ".join(f"M={m:<5}" for m in rows_of_x))

    def kind(r):
        return f"{r['backend']} {r['coding']} {r['format']}"

    def key(r):
        return r["format"], *r["shape"], kind(r)

    for fmt, rows, cols, name in dict.fromkeys(key(r) for r in linear):
        ratios = {r["m"]: r["of_linear_speed"] for r in linear if key(r) == (fmt, rows, cols, name)}
        cells = " ".join(f"{ratios[m]:<7.2f}" if m in ratios else " " * 7 for m in rows_of_x)
        print(f"{name:26} {rows:>7}x{cols:<6} {cells}")
    for name in dict.fromkeys(map(kind, linear)):
        for rows, ms in (("M = 1..16", range(17)), ("M = 32, 64", (32, 64))):
            mean = geometric_mean(
                r["of_linear_speed"] for r in linear if kind(r) == name and r["m"] in ms
            )
            print(f"{name} {rows}: geometric mean {mean:.3f}")
    for r in report["results"]["decode"]:
        print(f"{kind(r)} decode {r['shape']}: {r['TB/s written']} TB/s written")
    for r in report["results"]["to_fixed"]:
        print(f"{r['backend']} to fixed from {r['from']} {r['shape']}: {r['ms']} ms")
    for name in ("tests", "sanitizer", "copy TB/s"):
        print(f"{name}: {report[name]}")


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="two shapes, few rounds, no sanitizer")
    parser.add_argument("--commit", help="where the tree carries no .git")
    args = parser.parse_args()
    if not torch.cuda.is_available() or not backends():
        raise SystemExit(f"bench/gpu: no kernels for a GPU: {ops.backend_info()['missing']}")
    args.out.mkdir(parents=True, exist_ok=True)
    rounds = 5 if args.quick else 15
    bf16_shapes = LLAMA_8B[:2] if args.quick else LLAMA_8B + LLAMA_70B
    report = {
        "device": torch.cuda.get_device_name(),
        "date": datetime.date.today().isoformat(),
        "commit": args.commit or commit(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "tests": run_tests(args.out),
        "sanitizer": {
            f"{tool} {name}": "skipped" if args.quick else sanitize(args.out, tool, name)
            for name in backends()
            for tool in ("memcheck", "racecheck")
        },
        "copy TB/s": copy_bandwidth(),
        "results": {"decode_linear": [], "decode": [], "to_fixed": []},
    }

    def save() -> None:  # a run that is cut short keeps what it has
        (args.out / "results.json").write_text(json.dumps(report, indent=1) + "\n")

    for shape in bf16_shapes:
        for coding in ("rans", "fixed"):
            report["results"]["decode_linear"] += time_shape(
                *shape, torch.bfloat16, ROWS_OF_X, rounds, coding
            )
            save()
    for fmt in (torch.int8, torch.float8_e4m3fn):
        for shape in bf16_shapes[:3]:
            report["results"]["decode_linear"] += time_shape(*shape, fmt, (1, 4, 16), rounds)
            save()
    for fmt in (torch.bfloat16, torch.int8, torch.float32):
        report["results"]["decode"] += time_decode(14336, 4096, fmt, rounds)
    report["results"]["decode"] += time_decode(14336, 4096, torch.bfloat16, rounds, "fixed")
    report["results"]["to_fixed"] += time_conversions(14336, 4096, rounds)
    save()
    print_tables(report)


if __name__ == "__main__":
    main()
