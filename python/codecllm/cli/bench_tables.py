"""A benchmark's report as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from ..bench import BenchReport
    from ..bench.timing import Ratio

_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def heading(report: BenchReport) -> str:
    """What it was measured on, in one line."""
    m = report.machine
    version = m["codecllm"]
    if m["commit"]:
        version += f" {m['commit']}{' with changes' if m['modified'] else ''}"
    return (
        f"{m['device']}, {m['threads']} threads, kernels {m['backend']} {m['isa']}, "
        f"torch {m['torch']}, codecllm {version}, {m['date']}"
    )


def tables(report: BenchReport) -> Iterator[Table]:
    """What was measured; a part that was not has no table."""
    if report.linear:
        yield _linear(report)
    if report.generation or report.memory:
        yield _model(report)


def notes(report: BenchReport) -> list[str]:
    """What is missing, and what a reader has to know of the figures."""
    found = [f"{name}: not measured, {why}" for name, why in report.absent.items()]
    if report.generation and not report.generation.in_turns:
        found.append(
            "the models did not fit into memory together and ran one after another: compare with "
            "care"
        )
    return found


def _name(side: str, report: BenchReport) -> str:
    return side if side != "dense" else _SHORT.get(report.dense, report.dense)


def _linear(report: BenchReport) -> Table:
    dense = _name("dense", report)
    table = Table(title=f"decode_linear, speed relative to F.linear in {dense}", box=None)
    for title in ("[N, K]", "layers", "coding", "bits"):
        table.add_column(title, justify="left" if title == "coding" else "right", no_wrap=True)
    batches = list(dict.fromkeys(r.batch for r in report.linear))
    for batch in batches:
        table.add_column(f"M={batch}", justify="right", no_wrap=True)
    shapes = dict.fromkeys(r.shape for r in report.linear)
    for shape in shapes:
        found = {r.batch: r for r in report.linear if r.shape == shape}
        any_ = next(iter(found.values()))
        name, layers = "x".join(map(str, shape)), str(any_.layers) if report.model else ""
        for coding, bits in any_.bits_per_weight.items():
            speeds = (f"{found[b].speed[coding].median:.2f}" for b in batches)
            table.add_row(name, layers, coding, f"{bits:.2f}", *speeds)
            name = layers = ""
        milliseconds = (f"{1e3 * found[b].seconds['dense']:.3g}" for b in batches)
        table.add_row("", "", f"{dense}, ms", "", *milliseconds, end_section=True)
    return table


def _model(report: BenchReport) -> Table:
    table = Table(title=f"{report.model}, greedy, batch 1", box=None)
    table.add_column("")
    generation, memory = report.generation, report.memory
    sides = list(generation.tokens_per_second if generation else memory)
    for side in sides:
        table.add_column(_name(side, report), justify="right")
    if generation:
        table.add_row(
            "tokens per second", *(f"{generation.tokens_per_second[s]:.1f}" for s in sides)
        )
        table.add_row("  relative", *(_ratio(generation.speed.get(s)) for s in sides))
        if generation.prefill_seconds:
            title = f"prompt of {generation.work.long_prompt} tokens, s"
            table.add_row(title, *(f"{generation.prefill_seconds[s]:.2f}" for s in sides))
            table.add_row("  relative", *(_ratio(generation.prefill_speed.get(s)) for s in sides))
        new = generation.work.tokens
        same = (f"{generation.same_tokens.get(s, new)} of {new}" for s in sides)
        table.add_row("first tokens that are the same", *same)
    if memory:
        for title, field in (
            ("weights, MiB", "weights"),
            ("memory when loaded, MiB", "loaded"),
            ("  most while loading", "peak_loading"),
            ("  most while generating", "peak_generating"),
        ):
            table.add_row(title, *(f"{getattr(memory[s], field) / 2**20:.0f}" for s in sides))
        table.add_row("seconds to load", *(f"{memory[s].load_seconds:.1f}" for s in sides))
    return table


def _ratio(ratio: Ratio | None) -> str:
    return "1" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
