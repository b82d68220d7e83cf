"""A model of 1.1 billion weights: tokens per second, a long prompt, loading, memory, llama.cpp.

tinyllama.py writes the folders. llama.cpp runs where LLAMA_CPP_PYTHON names an interpreter that has
llama-cpp-python.
"""

from __future__ import annotations

import os

import pytest
import torch
from tinyllama import FOLDER, folder, load

from codecllm.bench.generation import Work, generate, measure_generation, token_seconds
from codecllm.bench.memory import measure_memory
from codecllm.bench.timing import DENSE, Effort, collect

pytest.importorskip("transformers")
from transformers import CompileConfig

SIDES = (DENSE, "fixed", "rans")
EFFORT = Effort(5, 60.0, 9)


def compiled() -> dict[str, object]:
    """Options of generate(): torch.compile and a static cache."""
    config = CompileConfig(fullgraph=True, mode="default")
    config._compile_all_devices = True  # else transformers compiles for GPUs only
    return {"cache_implementation": "static", "compile_config": config}


def once(benchmark, call):
    """pytest-benchmark wants to time something; these tests take turns themselves."""
    return benchmark.pedantic(call, rounds=1)


def test_tokens_per_second(benchmark, threads):
    threads(2)
    absent = {}
    found = once(
        benchmark,
        lambda: measure_generation(load, SIDES, Work(), EFFORT, at_once=True, absent=absent),
    )
    assert not absent
    benchmark.extra_info.update(found.to_dict())


@torch.inference_mode()
def test_compiled_with_a_static_cache(benchmark, threads):
    """What torch.compile adds for each side, and how codings compare when all are compiled."""
    threads(2)
    calls, texts = {}, {}
    for side in SIDES:
        model = load(side)
        for name, more in ((side, {}), (f"{side}, compiled", compiled())):
            texts[name] = generate(model, 16, 24, **more).tokens
            calls[name] = lambda model=model, more=more: token_seconds(model, Work(), **more)
    times = once(benchmark, lambda: collect(calls, EFFORT))
    for name in calls:
        benchmark.extra_info[name] = {
            "tokens_per_second": round(1 / times.median(name), 2),
            "of_dense_speed": times.speed(name, DENSE).to_dict(),
            "same_tokens": sum(a == b for a, b in zip(texts[name], texts[DENSE], strict=True)),
        }


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("tinyllama", DENSE),
        ("tinyllama-rans", DENSE),
        ("tinyllama-rans", "fixed"),
        ("tinyllama-rans", "rans"),
        ("tinyllama-fixed", "fixed"),
    ],
)
def test_memory_of_loading(benchmark, name, side):
    """Each load in a process of its own: time to the loaded model and to its first token, peaks."""
    path = folder(name)
    measure_memory(path, side, 2, 2)  # brings the files into the page cache
    runs = once(benchmark, lambda: [measure_memory(path, side, 2, 2) for _ in range(3)])
    best = min(runs, key=lambda run: run.load_seconds)
    benchmark.extra_info.update(
        {name: round(n / 1e6) for name, n in best.to_dict().items() if name != "load_seconds"},
        unit="MB",
        load_seconds=[round(run.load_seconds, 3) for run in runs],
    )


def test_against_llama_cpp(benchmark, threads):
    """bfloat16 in llama.cpp, same weights and same tokens, in a process that sleeps meanwhile."""
    if "LLAMA_CPP_PYTHON" not in os.environ:
        pytest.skip("LLAMA_CPP_PYTHON names no interpreter with llama-cpp-python")
    from rivals.client import LlamaCpp
    from rivals.gguf_file import write_gguf

    threads(2)
    work = Work()
    gguf = write_gguf(folder("tinyllama"), FOLDER / "tinyllama.gguf")
    models = {side: load(side) for side in SIDES}
    with LlamaCpp(os.environ["LLAMA_CPP_PYTHON"], gguf, threads=2) as rival:
        tokens = rival.ask("decode", work.prompt, work.tokens)["tokens"]
        # llama.cpp keeps float32 between layers: near ties may fall the other way later on.
        expected = generate(models[DENSE], work.prompt, work.tokens).tokens
        assert tokens[0] == expected[0]
        calls = {s: lambda m=m: token_seconds(m, work) for s, m in models.items()}
        quick, options = models["fixed"], compiled()
        calls["fixed, compiled"] = lambda: token_seconds(quick, work, **options)
        calls["llama.cpp"] = lambda: (
            rival.ask("decode", work.prompt, work.tokens)["seconds"] / (work.tokens - 1)
        )
        times = once(benchmark, lambda: collect(calls, EFFORT))
        prefill = {s: lambda m=m: generate(m, work.long_prompt, 1).at[0] for s, m in models.items()}
        prefill["llama.cpp"] = lambda: rival.ask("prefill", work.long_prompt)["seconds"]
        prompts = collect(prefill, Effort(3, 0.0))
    benchmark.extra_info["about"] = rival.about
    benchmark.extra_info["same_tokens"] = sum(a == b for a, b in zip(tokens, expected, strict=True))
    for side in calls:
        benchmark.extra_info[side] = {
            "tokens_per_second": round(1 / times.median(side), 2),
            "of_llama_cpp_speed": times.speed(side, "llama.cpp").to_dict(),
        }
        if side in prefill:
            found = prompts.speed(side, "llama.cpp").to_dict()
            benchmark.extra_info[side]["prefill_of_llama_cpp_speed"] = found
