"""A real model, compressed bit by bit and generating from its compressed weights: one table.

Makes the checkpoint (prepare_model.py), compresses it, verifies it, and generates three texts from
the original and from the compressed folder, each in a process of its own, so that peak memory is
that of one model. Writes report.json beside the models.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from prepare_model import prepare
from rich.console import Console
from rich.table import Table

PROMPTS = (
    "What is the capital of France?",
    "Explain in two sentences why the sky is blue.",
    "Write a short story about a lighthouse keeper.",
)
NEW_TOKENS = 48
ROUNDS = 2  # alternating, the faster one counts: other programs only ever slow us down
MIB = 2**20


def codecllm(*arguments: object) -> dict[str, Any]:
    """Runs a `codecllm` command in its own process and returns what it prints as JSON.

    Raises:
        SystemExit: the command failed; it has printed why.
    """
    command = [sys.executable, "-m", "codecllm.cli", *map(str, arguments), "--json"]
    # No model hub: everything is here, and its requests would time out without a network.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=False)
    if done.returncode:
        sys.stdout.write(done.stdout.decode())
        raise SystemExit(f"demo: `codecllm {' '.join(map(str, arguments))}` failed")
    return json.loads(done.stdout)


def generate(folder: Path, device: str, *options: str) -> dict[str, Any]:
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    count = ("--max-new-tokens", NEW_TOKENS, "--device", device)
    return codecllm("generate", folder, *prompts, *count, *options)


def folder_bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def measure(source: Path, packed: Path, device: str) -> dict[str, Any]:
    """Sizes, speeds and texts of both."""
    report = codecllm("compress", source, packed, "--jobs", os.cpu_count() or 1, "--force")
    verified = codecllm("verify", source, packed)
    runs: dict[str, list[dict[str, Any]]] = {"original": [], "compressed": [], "exact": []}
    for round_ in range(ROUNDS):
        runs["original"].append(generate(source, device))
        runs["compressed"].append(generate(packed, device))
        if round_ == 0:
            runs["exact"].append(generate(packed, device, "--exact"))
    original, compressed, exact = (
        max(rs, key=lambda r: r["tokens_per_second"]) for rs in runs.values()
    )
    return {
        "prompts": PROMPTS,
        "device": device,
        "verified": verified["ok"],
        "bits_per_weight": report["bits_per_weight"],
        "compress_seconds": report["seconds"],
        "file_bytes": {"original": folder_bytes(source), "compressed": folder_bytes(packed)},
        "original": original,
        "compressed": compressed,
        "exact": exact,
        "same_text": {
            "compressed": compressed["texts"] == original["texts"],
            "exact": exact["texts"] == original["texts"],
        },
    }


def table(result: dict[str, Any]) -> Table:
    out = Table(title="SmolLM2-135M-Instruct, greedy, batch 1")
    out.add_column("")
    for name in ("original", "compressed", "compressed, exact"):
        out.add_column(name, justify="right")
    runs = [result[k] for k in ("original", "compressed", "exact")]
    files = result["file_bytes"]
    bits = f"{result['bits_per_weight']:.2f}"
    same = [_same(result, "compressed"), _same(result, "exact")]
    sizes = [files["original"], files["compressed"], files["compressed"]]
    out.add_row("size on disk, MiB", *(f"{n / MIB:.1f}" for n in sizes))
    out.add_row("bits per weight", "16.00", bits, bits)
    out.add_row("weights in memory, MiB", *(f"{r['weight_bytes'] / MIB:.1f}" for r in runs))
    out.add_row(
        "peak memory of the process, MiB", *(f"{r['peak_rss_bytes'] / MIB:.0f}" for r in runs)
    )
    out.add_row("tokens per second", *(f"{r['tokens_per_second']:.1f}" for r in runs))
    out.add_row("weights equal bit by bit", "", *2 * ["yes" if result["verified"] else "NO"])
    out.add_row("same text as the original", "", *same)
    return out


def _same(result: dict[str, Any], name: str) -> str:
    """How many of the texts are equal: a greedy choice between near ties can differ."""
    pairs = zip(result[name]["texts"], result["original"]["texts"], strict=True)
    equal = sum(a == b for a, b in pairs)
    return "yes" if equal == len(PROMPTS) else f"{equal} of {len(PROMPTS)}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="%(default)s")
    parser.add_argument("--device", help="cpu or cuda; default: a GPU where there is one")
    args = parser.parse_args(argv)
    device = args.device or ("cuda" if _has_gpu() else "cpu")
    try:
        source = prepare(args.folder / "smollm2-bf16")
    except (FileNotFoundError, FileExistsError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    result = measure(source, args.folder / "smollm2-codecllm", device)
    for prompt, text in zip(PROMPTS, result["compressed"]["texts"], strict=True):
        print(f"> {prompt}\n{text}\n")
    Console(width=100).print(table(result))
    if not result["same_text"]["compressed"]:
        print(
            "Where texts differ, the fused kernel added in another order than the dense one and a "
            "near tie fell the other way; the weights are the same bits. --exact adds in the "
            "dense order."
        )
    report = args.folder / "report.json"
    report.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"Details: {report}")
    # Promises, not hopes: anything else is a failed demo.
    return 0 if result["verified"] and result["same_text"]["exact"] else 1


def _has_gpu() -> bool:
    import torch  # takes a second, and only this question needs it

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
