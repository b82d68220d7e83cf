"""SmolLM2 generating from compressed weights, and the memory of compressing a checkpoint."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timing import alternate

BUILD = Path(__file__).parents[1] / "build" / "demo"
NEW_TOKENS = 32

PEAK_OF_COMPRESS = """
import sys, torch, codecllm
def status(field):
    text = open('/proc/self/status').read()
    return 1024 * int(text.split(field + ':')[1].split()[0])
codecllm.CompressedTensor(None, torch.randn(512, 512).bfloat16()).decompress()
idle = status('VmRSS')
open('/proc/self/clear_refs', 'w').write('5')
codecllm.compress_checkpoint(sys.argv[1], sys.argv[2], jobs=int(sys.argv[3]))
print(status('VmHWM') - idle)
"""


def test_tokens_per_second(benchmark, threads):
    transformers = pytest.importorskip("transformers")
    import codecllm

    if not (BUILD / "smollm2-codecllm").exists():
        pytest.skip("run `make demo` first: it writes both folders")
    threads(2)
    dense = transformers.AutoModelForCausalLM.from_pretrained(
        BUILD / "smollm2-bf16", dtype=torch.bfloat16
    )
    fused = codecllm.load_compressed_model(BUILD / "smollm2-codecllm", device="cpu")
    ids = torch.arange(100, 116)[None]

    def generate(model):
        return model.generate(
            ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
        )

    assert generate(fused).shape == generate(dense).shape == (1, 16 + NEW_TOKENS)
    ours, theirs = alternate(lambda: generate(fused), lambda: generate(dense), rounds=7)
    benchmark.pedantic(lambda: generate(fused), rounds=1)
    benchmark.extra_info.update(
        {
            "tokens/s": round(NEW_TOKENS / ours, 1),
            "bf16 tokens/s": round(NEW_TOKENS / theirs, 1),
            "of_bf16_speed": round(theirs / ours, 3),
        }
    )


@pytest.mark.parametrize("jobs", [1, 2])
def test_compress_800_mb(benchmark, tmp_path, jobs):
    source = tmp_path / "source"
    source.mkdir()
    for shard in range(8):  # 100 MB each, tensors of 16 MiB
        weights = {
            f"model.layers.{shard}.m{i}.weight": (torch.randn(4096, 2048) / 50).bfloat16()
            for i in range(6)
        }
        save_file(weights, source / f"model-{shard:05}.safetensors")
    size = sum(f.stat().st_size for f in source.iterdir())

    def compress():
        return subprocess.run(
            [sys.executable, "-c", PEAK_OF_COMPRESS, source, tmp_path / "out", str(jobs)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )

    done = benchmark.pedantic(compress, rounds=1)
    packed = sum(f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors"))
    benchmark.extra_info.update(
        {
            "source MB": round(size / 1e6),
            "compressed MB": round(packed / 1e6),
            "peak RSS above idle, MB": round(int(done.stdout) / 1e6),
        }
    )
