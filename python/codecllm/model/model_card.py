"""README.md of a compressed folder: the original's, and how this one is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .tensor_file import write_text

CARD = "README.md"
_BEGIN, _END = "<!-- codecllm: begin -->\n", "<!-- codecllm: end -->\n\n"
_SECTION = re.compile(f"{_BEGIN}.*?{_END}", re.DOTALL)
_FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)

_LOAD = """\
```python
import codecllm  # first: transformers cannot read these weights without it
from transformers import {cls}

model = {cls}.from_pretrained("path/to/this/folder", dtype="auto")
```

`codecllm.load_compressed_model("path/to/this/folder")` does the same; with `mode="disk"` it decodes
everything once and returns the plain model."""

_DECODE = """\
```python
import codecllm  # transformers cannot read these weights without it

model = codecllm.load_compressed_model("path/to/this/folder", mode="disk")
```

The original is quantized ({method}), and transformers multiplies with its dense tensors only: they
are decoded while it loads."""


def _text_of(path: Path) -> str | None:
    """The card; empty where there is none, None where it is not UTF-8."""
    try:
        return path.read_bytes().decode() if path.is_file() else ""
    except UnicodeDecodeError:
        return None


def write_card(folder: Path, config: dict[str, Any]) -> None:
    """Adds the section to the card in `folder`, behind its front matter, or begins one.

    A card that is not UTF-8 stays as it is.

    Args:
        config: of the compressed folder.
    """
    path = folder / CARD
    text = _text_of(path)
    if text is None:
        return
    text = _SECTION.sub("", text)
    front = match.group() if (match := _FRONT.match(text)) else ""
    write_text(path, front + _section(config) + text[len(front) :])


def remove_section(folder: Path) -> None:
    """Undoes write_card(); a card that was begun by it is deleted."""
    path = folder / CARD
    text = _text_of(path)
    if text is None:
        return
    rest = _SECTION.sub("", text)
    if rest != text:
        if rest:
            write_text(path, rest)
        else:
            path.unlink()


def _section(config: dict[str, Any]) -> str:
    original = (config.get("quantization_config") or {}).get("original") or {}
    method = (original.get("quantization_config") or {}).get("quant_method")
    if method:
        how = _DECODE.format(method=method)
    else:
        names = config.get("architectures")
        known = isinstance(names, list) and names and str(names[0]).isidentifier()
        how = _LOAD.format(cls=names[0] if known else "AutoModel")
    return (
        f"{_BEGIN}## Compressed with codecllm\n\n"
        f"The weights in this folder are entropy-coded.\n\n{how}\n\n"
        "`codecllm decompress path/to/this/folder path/to/dense` writes the dense checkpoint.\n"
        f"{_END}"
    )
