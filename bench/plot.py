"""The plot of docs/: rows of x against speed relative to F.linear, from `codecllm bench --json`.

python bench/plot.py bench/results/NAME.json docs/decode-linear.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

COLOURS = {"fixed": "#1f6f8b", "rans": "#c8553d"}
LINES = ("-", "--", ":", "-.")


def draw(report: dict, target: Path) -> None:
    """One line per shape and coding; the band is the middle half of the rounds."""
    results = report["results"]["linear"]
    shapes = list(dict.fromkeys(tuple(r["shape"]) for r in results))
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for shape, style in zip(shapes, LINES, strict=False):
        rows = sorted((r for r in results if tuple(r["shape"]) == shape), key=lambda r: r["batch"])
        batches = [r["batch"] for r in rows]
        for coding, colour in COLOURS.items():
            speeds = [r["of_linear_speed"][coding] for r in rows]
            low, high = ([s[end] for s in speeds] for end in ("low", "high"))
            label = f"{coding}, {shape[0]} x {shape[1]}"
            middle = [s["median"] for s in speeds]
            axes.plot(batches, middle, style, color=colour, label=label, marker=".")
            axes.fill_between(batches, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    ticks = sorted({r["batch"] for r in results})
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("M, rows of x")
    axes.set_ylabel(f"speed of F.linear in {report['dense']} = 1")
    axes.set_title(
        f"decode_linear, {report['device']}, {report['threads']} threads, {report['isa']}"
    )
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    source, image = map(Path, sys.argv[1:])
    draw(json.loads(source.read_text()), image)
    print(f"{image}: {image.stat().st_size // 1024} KB")
