"""Builds fuzz_kernels.cpp with the CPU kernels under sanitizers, and runs it.

    python tests/fuzz/run.py [--cases 100000] [--seed 0] [--optimize 1]

Kernel files get the flags of their instruction set from setup.py. Objects are kept in build/fuzz.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g"]

# A format is an entry of csrc/core/format.h and no more: these need no other line anywhere.
MORE_FORMATS = (
    "-DCLLM_MORE_FORMATS(FORMAT)="
    "FORMAT(WholeInt8, 201, 0, 8, Integer<8>) "
    "FORMAT(Fp8E3m4, 202, 3, 4, Float<3, 4, false>)"
)


def _setup_module():
    spec = importlib.util.spec_from_file_location("codecllm_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_compiler() -> str | None:
    return _setup_module().find_compiler()


def build(optimize: int = 1) -> Path:
    """Compiles what has changed; returns the program."""
    setup = _setup_module()
    folder = ROOT / "build" / "fuzz" / f"O{optimize}"
    folder.mkdir(parents=True, exist_ok=True)
    compiler = setup.find_compiler().split()
    sources = [(ROOT / s, setup.isa_of(s)) for s in kernel_sources(setup)]
    sources.append((Path(__file__).with_name("fuzz_kernels.cpp"), None))
    inputs = [ROOT / "setup.py", Path(__file__), *(ROOT / "csrc").rglob("*.h")]
    inputs += Path(__file__).parent.glob("*.h")
    newest = max(p.stat().st_mtime for p in inputs)
    plain = [f for f in setup.CXX_FLAGS if not f.startswith(("-O", "-g"))] + [MORE_FORMATS]

    def compile_one(job) -> Path:
        source, isa = job
        target = folder / f"{source.stem}.o"
        if target.exists() and target.stat().st_mtime > max(newest, source.stat().st_mtime):
            return target
        flags = [*plain, *SANITIZERS, f"-O{optimize}", *setup.ISA_FLAGS.get(isa, [])]
        partial = folder / f"{source.stem}.{os.getpid()}.o"
        command = [*compiler, *flags, f"-I{ROOT / 'csrc'}", "-c", str(source), "-o", str(partial)]
        subprocess.run(command, check=True)
        return partial.rename(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = [str(o) for o in pool.map(compile_one, sources)]
    program = folder / f"fuzz_kernels.{os.getpid()}"
    subprocess.run([*compiler, *SANITIZERS, *objects, "-o", str(program)], check=True)
    return program.rename(folder / "fuzz_kernels")


def kernel_sources(setup) -> list[Path]:
    """setup.kernel_sources, from wherever this is called."""
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        return setup.kernel_sources()
    finally:
        os.chdir(here)


def fuzz(cases: int, seed: int, optimize: int = 1) -> subprocess.CompletedProcess:
    program = build(optimize)
    return subprocess.run([program, str(cases), str(seed)], capture_output=True, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--optimize", type=int, default=1, help="level of -O")
    args = parser.parse_args()
    done = fuzz(args.cases, args.seed, args.optimize)
    print(done.stdout, done.stderr, sep="", end="")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
