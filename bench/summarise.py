"""Turns pytest-benchmark's JSON into a results file: `summarise.py raw.json results/NAME.json`."""

import json
import sys
from pathlib import Path


def summarise(raw: dict) -> dict:
    """Machine, date, and per benchmark the median and what the benchmark noted itself."""
    return {
        **raw["machine_info"],
        "date": raw["datetime"][:10],
        "results": {
            b["fullname"].removeprefix("bench/"): {
                "median_s": round(b["stats"]["median"], 6),
                **b["extra_info"],
            }
            for b in raw["benchmarks"]
        },
    }


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(json.dumps(summarise(json.loads(source.read_text())), indent=1) + "\n")
    print(f"{target}: {len(json.loads(target.read_text())['results'])} results")
