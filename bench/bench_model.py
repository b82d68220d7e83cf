"""SmolLM2 generating from compressed weights, and the memory of compressing a checkpoint."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from codecllm.bench.generation import Work, measure_generation
from codecllm.bench.timing import DENSE, Effort

BUILD = Path(__file__).parents[1] / "build" / "demo"

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
    pytest.importorskip("transformers")
    from codecllm.integrations.any_folder import load_folder

    if not (BUILD / "smollm2-rans").exists():
        pytest.skip("run `make demo` first: it writes the folders")
    threads(2)

    def load(side):
        if side == DENSE:
            return load_folder(BUILD / "smollm2-bf16")
        return load_folder(BUILD / "smollm2-rans", side)

    def measure():
        work, effort = Work(tokens=32), Effort(7, 30.0, 15)
        sides = (DENSE, "fixed", "rans")
        return measure_generation(load, sides, work, effort, at_once=True, absent={})

    benchmark.extra_info.update(benchmark.pedantic(measure, rounds=1).to_dict())


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
