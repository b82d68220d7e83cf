"""Writes the golden files of all format versions. Files that exist are never overwritten.

    python tests/golden/make.py

Each file holds the four tensors of one coded matrix, the words that it decodes to, and how it was
encoded. A released version's files stay as they are: a format that reads them differently needs a
new version, and files of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

import codecllm_ops as ops  # noqa: E402
from cases import ALL_FORMATS, CONTENTS, to_tensor  # noqa: E402
from codecllm_ops import CodedMatrix  # noqa: E402
from codecllm_ops.format import FORMATS  # noqa: E402
from codecllm_ops.format.head import VERSIONS  # noqa: E402


def encode(words: torch.Tensor, scale: torch.Tensor | None, how: dict) -> CodedMatrix:
    """Encodes as a file's metadata says: each segment with its own table, one below the other."""
    parts, row = [], 0
    for rows in how["segment_rows"]:
        part = None if scale is None else scale[row : row + rows]
        parts.append(ops.encode(words[row : row + rows].clone(), scale=part, **how["options"]))
        row += rows
    return parts[0] if len(parts) == 1 else CodedMatrix.concat_rows(parts)


def cases() -> dict[str, tuple[torch.Tensor, torch.Tensor | None, dict]]:
    """Name -> words, scales, how to encode them."""
    coded = {"tile_cols": 48, "allow_stored": False}
    out = {}
    for fmt in ALL_FORMATS:
        # Ordinary weights, all kinds of extremes, and escapes at the borders of tiles.
        mixed = [CONTENTS[c](17, 90, fmt) for c in ("normal", "extremes", "escapes_at_borders")]
        words = to_tensor(np.concatenate(mixed), fmt)
        out[fmt.name] = words, None, {"segment_rows": [51], "options": coded}
    bf16, int8 = FORMATS["bf16"], FORMATS["int8"]
    scale = torch.arange(1, 41) / 1024
    normal = to_tensor(CONTENTS["normal"](40, 90, int8), int8)
    out["int8_row_scales"] = normal, scale, {"segment_rows": [40], "options": coded}
    ramp = to_tensor(CONTENTS["ramp"](40, 90, int8), int8)
    out["predictor_left"] = (
        ramp,
        None,
        {"segment_rows": [40], "options": coded | {"predictor": "left"}},
    )
    uniform = to_tensor(CONTENTS["uniform"](5, 7, bf16), bf16)
    out["stored"] = uniform, None, {"segment_rows": [5], "options": {}}
    seams = [
        CONTENTS[c](r, 90, bf16) for c, r in (("normal", 17), ("extremes", 1), ("one_symbol", 33))
    ]
    segments = {"segment_rows": [17, 1, 33], "options": coded | {"scale_bits": 9}}
    out["three_segments"] = to_tensor(np.concatenate(seams), bf16), None, segments
    fixed = coded | {"coding": "fixed"}
    out["fixed"] = out["bf16"][0], None, {"segment_rows": [51], "options": fixed}
    out["fixed_three_segments"] = (
        out["three_segments"][0],
        None,
        {"segment_rows": [17, 1, 33], "options": fixed | {"tile_cols": 64}},
    )
    return out


def write(folder: Path) -> list[Path]:
    """Writes what is missing; returns what it wrote."""
    written = []
    for name, (words, scale, how) in cases().items():
        version = VERSIONS[how["options"].get("coding", "rans")]
        path = folder / f"v{version}_{name}.safetensors"
        if path.exists():
            continue
        matrix = encode(words, scale, how).check()
        tensors = {
            "weight": matrix.stream,
            "weight_raw": matrix.raw,
            "weight_index": matrix.index,
            "weight_head": matrix.head,
            "decoded": words,
        }
        save_file(tensors, path, metadata={"how": json.dumps(how)})
        written.append(path)
    return written


if __name__ == "__main__":
    files = write(FOLDER)
    for path in files:
        print(f"{path.name}: {path.stat().st_size} bytes")
    if not files:
        sys.exit("nothing written: the files of this version exist, and are never overwritten")
