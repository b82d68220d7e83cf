"""Commands and their arguments.

Commands import what they run themselves: torch takes a second, which --help must not cost, and
`doctor` has to run where codecllm_ops does not load.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .errors import guarded
from .progress import progress, status

if TYPE_CHECKING:
    from ..model.inspect_folder import VerifyResult
    from ..model.report import CompressionReport

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Keep LLM weights entropy-coded, bit-exact. Folders in, folders out.",
)

Src = Annotated[Path, typer.Argument(help="Checkpoint folder.", show_default=False)]
Dst = Annotated[Path, typer.Argument(help="Folder to write.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")]
Skip = Annotated[list[str] | None, typer.Option(help="Keep tensors dense whose name matches.")]
Format = Annotated[str, typer.Option(help="lossless, int8 or int8-tensor.")]
TileCols = Annotated[int | None, typer.Option(help="Columns of a tile, a multiple of 16.")]
FileCoding = Annotated[str, typer.Option(help="Of the files: rans (smallest) or fixed (12 bits).")]
Coding = Annotated[str, typer.Option(help="In memory: auto, fixed (fast) or rans (smallest).")]
Predictor = Annotated[str, typer.Option(help="none, left, or auto (measured per tensor).")]


@app.command()
def estimate(
    src: Src,
    format: Format = "lossless",
    coding: FileCoding = "rans",
    skip: Skip = None,
    tile_cols: TileCols = None,
    predictor: Predictor = "none",
    as_json: Json = False,
) -> None:
    """Size that SRC would have, from samples; writes nothing."""
    from ..model.inspect_folder import estimate_checkpoint
    from ..nn import Codec

    codec = Codec(tile_cols=tile_cols, predictor=predictor)
    with progress("estimate") as show:
        report = estimate_checkpoint(
            src, format=format, codec=codec, coding=coding, skip=skip or (), progress=show
        )
    _print(report, as_json)


@app.command()
def compress(
    src: Src,
    dst: Dst,
    format: Format = "lossless",
    coding: FileCoding = "rans",
    skip: Skip = None,
    tile_cols: TileCols = None,
    predictor: Predictor = "none",
    jobs: Annotated[int, typer.Option(help="Tensors encoded at the same time.")] = 1,
    force: Force = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Write SRC compressed to DST."""
    from ..model.compress_folder import compress_checkpoint
    from ..nn import Codec

    with progress("compress") as show:
        report = compress_checkpoint(
            src,
            dst,
            format=format,
            codec=Codec(tile_cols=tile_cols, predictor=predictor),
            coding=coding,
            skip=skip or (),
            jobs=jobs,
            force=force,
            resume=resume,
            progress=show,
        )
    _print(report, as_json)


@app.command()
def convert(
    src: Src,
    dst: Dst,
    coding: FileCoding,
    tile_cols: TileCols = None,
    predictor: Predictor = "none",
    jobs: Annotated[int, typer.Option(help="Tensors converted at the same time.")] = 1,
    force: Force = False,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Write the compressed folder SRC in another coding to DST."""
    from ..model.convert_folder import convert_checkpoint
    from ..nn import Codec

    with progress("convert") as show:
        report = convert_checkpoint(
            src,
            dst,
            coding,
            codec=Codec(tile_cols=tile_cols, predictor=predictor),
            jobs=jobs,
            force=force,
            resume=resume,
            progress=show,
        )
    _print(report, as_json)


@app.command()
def decompress(
    src: Src, dst: Dst, force: Force = False, resume: Resume = False, as_json: Json = False
) -> None:
    """Write the dense checkpoint of the compressed folder SRC to DST."""
    from ..model.decompress_folder import decompress_checkpoint

    with progress("decompress") as show:
        report = decompress_checkpoint(src, dst, force=force, resume=resume, progress=show)
    if as_json:
        print(report.to_json())
    else:
        dense, coded = report.dense_bytes / 2**20, report.coded_bytes / 2**20
        print(f"{coded:.1f} -> {dense:.1f} MiB, {report.seconds:.1f} s")


@app.command()
def verify(
    src: Src,
    dst: Annotated[Path | None, typer.Argument(help="Compressed folder.")] = None,
    as_json: Json = False,
) -> None:
    """Compare DST with its source SRC bit by bit; with one folder, check it and decode it."""
    from ..model.inspect_folder import verify_checkpoint

    with progress("verify") as show:
        result = verify_checkpoint(src, dst, progress=show)
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        _print_verdict(result, compared=dst is not None)
    if not result.ok:
        raise typer.Exit(1)


def _print_verdict(result: VerifyResult, compared: bool) -> None:
    for line in result.mismatches[:10]:
        print(line)
    if len(result.mismatches) > 10:
        print(f"... and {len(result.mismatches) - 10} more")
    checked = f"{result.coded} coded tensors"
    if compared:
        checked = f"{result.tensors} tensors compared, {result.coded} of them coded"
    verdict = "equal bit by bit" if compared else "checksums match, all decode"
    if compared and result.rounded:
        verdict = (
            f"{result.rounded} are int8: integers and scales are those that the source rounds to; "
            "all others equal bit by bit"
        )
    if not result.ok:
        verdict = f"{len(result.mismatches)} differ or are in one folder only"
    print(f"{checked}, {result.dense_bytes / 2**20:.1f} MiB: {verdict}, {result.seconds:.1f} s")


@app.command()
def info(src: Src, as_json: Json = False) -> None:
    """List the tensors of a folder with their rates."""
    from ..model.inspect_folder import checkpoint_info
    from ..model.report import CODED

    report = checkpoint_info(src)
    if as_json:
        print(report.to_json())
        return
    table = Table(box=None, pad_edge=False)
    for title, justify in (
        ("tensor", "left"),
        ("shape", "left"),
        ("format", "left"),
        ("bytes", "right"),
        ("bits/weight", "right"),
        ("in memory", "left"),
        ("bits/weight", "right"),
    ):
        table.add_column(title, justify=justify, no_wrap=True)
    for row in report.layers:
        shape = "x".join(map(str, row.shape))
        coded = row.status == CODED
        kind = f"{row.weight_format} {row.coding}" if coded else f"dense {row.dtype}"
        bits = row.memory_bits_per_weight
        memory = (row.memory_coding, f"{bits:.3f}") if bits is not None else ("", "")
        size = (str(row.coded_bytes), f"{row.bits_per_weight:.3f}")
        table.add_row(row.name, shape, kind, *size, *memory)
    # A pipe has no width: names must not be cut there.
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    print("\n".join(report.lines()))


@app.command()
def generate(
    src: Annotated[Path, typer.Argument(help="Folder or hub repository, compressed or not.")],
    prompt: Annotated[list[str], typer.Option("--prompt", "-p", help="May be repeated.")],
    max_new_tokens: Annotated[int, typer.Option(help="Per prompt.")] = 48,
    mode: Annotated[str, typer.Option(help="fused or disk.")] = "fused",
    coding: Coding = "auto",
    exact: Annotated[bool, typer.Option("--exact", help="Decode, then F.linear.")] = False,
    chat: Annotated[bool, typer.Option(help="Use the chat template, if there is one.")] = True,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1...")] = "cpu",
    as_json: Json = False,
) -> None:
    """Generate greedily and print the new text (without the prompt)."""
    try:
        from ..integrations.generate import generate_text
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ImportError(
            "generate needs transformers: pip install 'transformers>=5,<6' accelerate"
        ) from error

    result = generate_text(
        src,
        prompt,
        max_new_tokens=max_new_tokens,
        mode=mode,
        coding=coding,
        exact=exact,
        chat=chat,
        device=device,
    )
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
        return
    for text in result.texts:
        print(text)
    print(
        f"{result.tokens_per_second:.1f} tokens/s, weights {result.weight_bytes / 2**20:.0f} MiB, "
        f"peak memory {result.peak_rss_bytes / 2**20:.0f} MiB",
        file=sys.stderr,
    )
    for line in result.codings:
        print(line, file=sys.stderr)
    if result.chat:
        print(
            "prompts went in as messages of a chat; --no-chat continues their text", file=sys.stderr
        )


@app.command()
def bench(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Checkpoint, compressed or not. Without: products only."),
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(help="Rows of x; may be repeated. Default: 1 to 512.")
    ] = None,
    coding: Annotated[
        list[str] | None, typer.Option(help="fixed or rans; may be repeated. Default: both.")
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help="linear, tokens or memory; may be repeated. Default: all."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Default: torch's.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes, sizes, rounds.")] = False,
    as_json: Json = False,
) -> None:
    """Measure speed and memory on this machine: dense weights against coded ones."""
    from ..bench import run_bench
    from .bench_tables import heading, notes, tables

    with status() as show:
        report = run_bench(
            folder,
            batches=batch,
            codings=coding,
            parts=part,
            threads=threads,
            quick=quick,
            progress=show,
        )
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
        return
    print(heading(report))
    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in tables(report):
        console.print()
        console.print(table)
    print("".join(f"\n{note}" for note in notes(report)))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Versions, the backend that runs, and what is missing."""
    from .doctor import diagnose, lines

    found = diagnose()
    print(json.dumps(found, indent=2, default=str) if as_json else "\n".join(lines(found)))


def _print(report: CompressionReport, as_json: bool) -> None:
    print(report.to_json() if as_json else "\n".join(report.lines()))


def run(arguments: list[str]) -> int:
    """Runs a command; returns the exit code. Errors become one sentence on stderr."""

    def work() -> int:
        # typer's own help for no arguments is a usage error without text.
        arguments_or_help = arguments or ["--help"]
        try:
            code: Any = app(args=arguments_or_help, prog_name="codecllm", standalone_mode=False)
        except typer.Abort:
            code = 130
        if code == 130:  # what typer makes of an interrupt, or an Abort
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0

    return guarded(work, arguments)
