"""llama.cpp behind a pipe: runs in an environment of its own, which has llama-cpp-python.

Its first line says what it is. Then every line "decode PROMPT TOKENS" or "prefill PROMPT" on stdin
gives a line on stdout: {"seconds", "tokens"}. In between it waits and uses no processor.
"""

import json
import sys
import time

import llama_cpp
import numpy


def prompt(length):
    """The same tokens that codecllm.bench.generation begins with."""
    return [5 + 37 * i % 31995 for i in range(length)]


def decode(model, length, tokens):
    """Greedy tokens; seconds without those of the prompt, which gives the first."""
    model.reset()
    model.eval(prompt(length))
    found = [_best(model)]
    begin = time.perf_counter()
    while len(found) < tokens:
        model.eval(found[-1:])
        found.append(_best(model))
    return {"seconds": time.perf_counter() - begin, "tokens": found}


def prefill(model, length):
    model.reset()
    begin = time.perf_counter()
    model.eval(prompt(length))
    return {"seconds": time.perf_counter() - begin, "tokens": [_best(model)]}


def _best(model):
    logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
    return int(numpy.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())


def main(path, threads):
    model = llama_cpp.Llama(
        path, n_ctx=1024, n_threads=threads, n_threads_batch=threads, n_batch=512, verbose=False
    )
    features = llama_cpp.llama_print_system_info().decode()
    print(json.dumps({"llama_cpp_python": llama_cpp.__version__, "cpu": features}), flush=True)
    for line in sys.stdin:
        what, *numbers = line.split()
        found = {"decode": decode, "prefill": prefill}[what](model, *map(int, numbers))
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
