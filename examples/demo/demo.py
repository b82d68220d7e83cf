"""A real model, compressed bit by bit and generating from its compressed weights: one table.

Makes the checkpoint (prepare_model.py), compresses it in both codings, verifies both, and generates
three texts from each folder, in processes of their own, so that peak memory is that of one model.
Writes report.json beside the models.
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
SIDES = ("original", "fixed", "rans")
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


def measure(source: Path, folder: Path, device: str) -> dict[str, Any]:
    """Sizes, speeds and texts of the original and of both codings."""
    rans, fixed = folder / "smollm2-rans", folder / "smollm2-fixed"
    report = codecllm("compress", source, rans, "--jobs", os.cpu_count() or 1, "--force")
    codecllm("convert", rans, fixed, "--coding", "fixed", "--force")
    folders = {"original": source, "fixed": fixed, "rans": rans}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in folders}
    for _ in range(ROUNDS):
        for name, path in folders.items():
            coding = () if name == "original" else ("--coding", name)
            runs[name].append(generate(path, device, *coding))
    found: dict[str, Any] = {
        "prompts": PROMPTS,
        "device": device,
        "compress_seconds": report["seconds"],
        "exact_texts": generate(fixed, device, "--exact")["texts"],
    }
    for name, path in folders.items():
        found[name] = {
            **max(runs[name], key=lambda r: r["tokens_per_second"]),
            "file_bytes": sum(p.stat().st_size for p in path.glob("*.safetensors")),
            "bits_per_weight": 16.0,
        }
        if name != "original":
            info = codecllm("info", path)
            found[name]["bits_per_weight"] = info["bits_per_weight"]
            found[name]["verified"] = codecllm("verify", source, path)["ok"]
    return found


def table(result: dict[str, Any]) -> Table:
    out = Table(title="SmolLM2-135M-Instruct, greedy, batch 1")
    out.add_column("")
    for name in SIDES:
        out.add_column(name, justify="right")
    sides = [result[name] for name in SIDES]
    speed = sides[0]["tokens_per_second"]
    rows = {
        "size on disk, MiB": (f"{s['file_bytes'] / MIB:.1f}" for s in sides),
        "bits per weight": (f"{s['bits_per_weight']:.2f}" for s in sides),
        "weights in memory, MiB": (f"{s['weight_bytes'] / MIB:.1f}" for s in sides),
        "peak memory of the process, MiB": (f"{s['peak_rss_bytes'] / MIB:.0f}" for s in sides),
        "tokens per second": (f"{s['tokens_per_second']:.1f}" for s in sides),
        "  relative to the original": (f"{s['tokens_per_second'] / speed:.2f}" for s in sides),
        "weights equal bit by bit": ("", *("yes" if s["verified"] else "NO" for s in sides[1:])),
        "same text as the original": ("", *(_same(result, name) for name in SIDES[1:])),
    }
    for title, cells in rows.items():
        out.add_row(title, *cells)
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
    result = measure(source, args.folder, device)
    for prompt, text in zip(PROMPTS, result["fixed"]["texts"], strict=True):
        print(f"> {prompt}\n{text}\n")
    Console(width=100).print(table(result))
    original = result["original"]["texts"]
    if any(result[name]["texts"] != original for name in SIDES):
        print(
            "Where texts differ, the fused kernel added in another order than the dense one and a "
            "near tie fell the other way; the weights are the same bits. --exact adds in the "
            "dense order."
        )
    report = args.folder / "report.json"
    report.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"Details: {report}")
    # Promises, not hopes: anything else is a failed demo.
    kept = all(result[name]["verified"] for name in SIDES[1:])
    return 0 if kept and result["exact_texts"] == original else 1


def _has_gpu() -> bool:
    import torch  # takes a second, and only this question needs it

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
