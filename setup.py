"""Build of the compiled kernels; everything else is said in pyproject.toml.

Traps:
  * torch is no build requirement, so an isolated build sees none and makes a pure-Python wheel.
    `pip install --no-build-isolation .` makes the compiled one.
  * Only the stable ABI of torch is used (TORCH_STABLE_ONLY): one wheel serves Python >= 3.10 and
    torch >= 2.11. The library has no PyInit; it is loaded with torch.ops.load_library.
  * A kernel file for one instruction set may hold out-of-line copies of inline functions. The
    linker keeps the first copy it meets, so objects are linked in the order of ISA_FLAGS, those
    that run everywhere first.

  * The CUDA library is an extension of its own: where no driver is, it does not load, and nothing
    else suffers. Torch's CUDAExtension wants a CUDA torch to build; a CppExtension does not.

Environment:
  CODECLLM_NO_EXT=1    no compiled part
  CODECLLM_CUDA        auto (default: if nvcc is there and torch is a CUDA build), 0 or 1
  CUDA_HOME            the toolkit, else that of the nvcc on PATH
  TORCH_CUDA_ARCH_LIST GPUs to compile for, e.g. "9.0a;10.0a+PTX"
  CODECLLM_SANITIZE=1  address and undefined-behaviour sanitizers (preload libasan to run)
  CXX, MAX_JOBS        the compiler, and how many of it run at once
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.modified import newer_group

TORCH_TARGET_VERSION = "0x020b000000000000"  # 2.11, the first whose stable ABI has all that is used
PYTHON_TARGET = "cp310"

SANITIZE = os.environ.get("CODECLLM_SANITIZE") == "1"
X86 = platform.machine().lower() in ("x86_64", "amd64")
LINUX = sys.platform.startswith("linux")

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# -g0 undoes the -g that Python's own build flags bring along.
OPTIMIZE = [*SANITIZERS, "-g", "-O1"] if SANITIZE else ["-O3", "-g0"]
CXX_FLAGS = [
    "-std=c++20",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Wno-psabi",  # vectors of 64 bytes never cross a file
    "-Wno-maybe-uninitialized",  # GCC 12's own AVX-512 headers
    *OPTIMIZE,
    *([] if X86 else ["-DCLLM_NO_X86"]),
]
TORCH_FLAGS = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}", "-DTORCH_STABLE_ONLY"]
# --no-as-needed: libtorch must stay a dependency although no symbol of it is named directly.
LINK_FLAGS = [
    *(SANITIZERS if SANITIZE else []),
    *(["-Wl,--no-as-needed"] if LINUX else []),
    "-ltorch",
]

AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vbmi2", "-mfma", "-mf16c"]
# GCC's scheduler before register allocation is off on x86. The decode loop has four chains in 32
# registers and gains 3 to 10 % from it.
AVX512 += ["-fschedule-insns", "-fsched-pressure"]
# Last part of a kernel file's name -> flags of its instruction set. Which file's code may run is
# decided at run time.
ISA_FLAGS = {"avx2": AVX2, "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16"]}


# Turing to Blackwell; PTX of the last for what comes after.
CUDA_ARCHS = "7.5;8.0;8.6;8.9;9.0a;10.0a;12.0+PTX"
# For a profiler's source view: NVCC_APPEND_FLAGS=-lineinfo, which doubles the library.
NVCC_FLAGS = ["-O3", "-std=c++17", "-Xfatbin=-compress-all", "-Xcompiler=-fvisibility=hidden"]


def isa_of(source: Path) -> str | None:
    """Instruction set that a kernel file is named after; None if it runs everywhere."""
    base, _, last = source.stem.rpartition("_")
    return last if base and last in ISA_FLAGS else None


def kernel_sources() -> list[Path]:
    """Torch-free kernel files for this machine, in link order."""
    order = [None, *ISA_FLAGS]
    sources = (s for s in Path("csrc/cpu").glob("*.cpp") if X86 or isa_of(s) is None)
    return sorted(sources, key=lambda s: (order.index(isa_of(s)), s))


def kernel_flags(source: Path) -> list[str]:
    return [*CXX_FLAGS, *ISA_FLAGS.get(isa_of(source), [])]


def headers() -> list[str]:
    return sorted(str(p) for pattern in ("*.h", "*.cuh") for p in Path("csrc").rglob(pattern))


def find_compiler() -> str | None:
    """Command of the C++ compiler: $CXX, else Python's own, else a usual name; None if missing."""
    wanted = os.environ.get("CXX")
    if wanted:
        if not shutil.which(wanted.split()[0]):
            raise SystemExit(f"codecllm: CXX={wanted} is not an executable")
        return wanted
    candidates = [sysconfig.get_config_var("CXX"), "c++", "g++", "clang++"]
    return next((c for c in candidates if c and shutil.which(c.split()[0])), None)


def reason_for_pure_python() -> str | None:
    """Why the compiled part cannot or shall not be built; None if it is built."""
    if os.environ.get("CODECLLM_NO_EXT") == "1":
        return "CODECLLM_NO_EXT=1"
    if sys.platform == "win32":
        return "no compiled kernels on Windows yet"
    if find_spec("torch") is None:
        return (
            "torch is not visible to the build (an isolated build?). For compiled kernels: "
            "pip install torch setuptools ninja && pip install --no-build-isolation ."
        )
    if find_compiler() is None:
        return "no C++ compiler found. For compiled kernels install g++ or clang++, or set CXX"
    return None


def cuda_home() -> Path | None:
    """Root of the CUDA toolkit; None if there is none."""
    wanted = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    candidates = [Path(wanted)] if wanted else []
    if nvcc := shutil.which("nvcc"):
        # What is on PATH may be a wrapper: nvcc itself knows where it lives.
        run = subprocess.run([nvcc, "-dryrun", "--cubin", "x.cu"], capture_output=True, text=True)
        if found := re.search(r"TOP=(\S+)", run.stderr + run.stdout):
            candidates.append(Path(found[1]).resolve())
    candidates += [Path(p, "nvidia", "cu13") for p in sys.path]  # pip install cuda-toolkit
    candidates.append(Path("/usr/local/cuda"))
    return next((c for c in candidates if (c / "bin/nvcc").exists()), None)


def wants_cuda() -> bool:
    wish = os.environ.get("CODECLLM_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"codecllm: CODECLLM_CUDA={wish} is not auto, 0 or 1")
    if wish == "1" and cuda_home() is None:
        raise SystemExit("codecllm: CODECLLM_CUDA=1, but no nvcc; install a toolkit, set CUDA_HOME")
    if wish == "auto":
        import torch

        return torch.version.cuda is not None and cuda_home() is not None
    return wish == "1"


def cuda_arch_flags(archs: str, known: str) -> list[str]:
    """-gencode flags.

    Args:
        archs: e.g. "8.0;9.0a+PTX".
        known: what `nvcc --list-gpu-code` prints; others are left out with a message.
    """
    flags = []
    for arch in archs.replace(" ", ";").split(";"):
        number = arch.removesuffix("+PTX").replace(".", "")
        if f"sm_{number.rstrip('af')}" not in known.split():
            print(f"*** codecllm: this nvcc does not know sm_{number}: left out", file=sys.stderr)
            continue
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def extensions() -> list[Extension]:
    """One extension per device library."""
    return [cpu_extension(), *([cuda_extension()] if wants_cuda() else [])]


def cuda_sources() -> list[str]:
    return sorted(str(p) for p in Path("csrc/cuda").iterdir() if p.suffix in (".cu", ".cpp"))


def cuda_extension() -> Extension:
    from torch.utils import cpp_extension

    home = cuda_home()
    cpp_extension.CUDA_HOME = str(home)  # a CPU-only torch leaves it None
    known = subprocess.run(
        [home / "bin/nvcc", "--list-gpu-code"], check=True, capture_output=True, text=True
    ).stdout
    archs = cuda_arch_flags(os.environ.get("TORCH_CUDA_ARCH_LIST", CUDA_ARCHS), known)
    return cpp_extension.CppExtension(
        "codecllm_ops._C_cuda",
        ["csrc/torch/ops_cuda.cpp", *cuda_sources()],
        include_dirs=[str(Path("csrc").resolve()), str(home / "include")],
        library_dirs=[str(home / "lib64"), str(home / "lib")],
        libraries=["cudart_static", "rt", "pthread", "dl"],
        extra_compile_args={"cxx": [*TORCH_FLAGS, *CXX_FLAGS], "nvcc": [*NVCC_FLAGS, *archs]},
        extra_link_args=LINK_FLAGS,
        depends=headers(),
        py_limited_api=True,
    )


def cpu_extension() -> Extension:
    from torch.utils.cpp_extension import CppExtension

    # Kernel objects are added to extra_objects by the build_ext command.
    return CppExtension(
        "codecllm_ops._C",
        sorted(str(p) for p in Path("csrc/torch").glob("ops_cpu*.cpp")),
        include_dirs=[str(Path("csrc").resolve())],
        extra_compile_args={"cxx": [*TORCH_FLAGS, *CXX_FLAGS]},
        extra_link_args=LINK_FLAGS,
        depends=headers(),
        py_limited_api=True,
    )


def build_ext_command() -> type:
    from torch.utils.cpp_extension import BuildExtension

    class BuildKernels(BuildExtension.with_options(no_python_abi_suffix=True)):
        """Compiles the kernel files, each with its own flags, then the torch glue."""

        def finalize_options(self) -> None:
            super().finalize_options()
            # An editable build's own folder is temporary: nothing would ever be up to date. Plain
            # and sanitized objects must not mix.
            base = "build/temp-editable" if self.editable_mode else self.build_temp
            self.build_temp = f"{base}-sanitize" if SANITIZE else base

        def build_extensions(self) -> None:
            # First, because BuildExtension patches the compiler object.
            objects = self.compile_kernels()
            for extension in self.extensions:
                if extension.name == "codecllm_ops._C":
                    extension.extra_objects += objects
            super().build_extensions()

        def compile_kernels(self) -> list[str]:
            sources = kernel_sources()
            dependencies = [*headers(), "setup.py"]
            Path(self.build_temp, "csrc/cpu").mkdir(parents=True, exist_ok=True)

            def compile_one(source: Path) -> str:
                (target,) = self.compiler.object_filenames(
                    [str(source)], output_dir=self.build_temp
                )
                if newer_group([str(source), *dependencies], target):
                    self.compiler.compile(
                        [str(source)],
                        output_dir=self.build_temp,
                        include_dirs=["csrc"],
                        extra_postargs=kernel_flags(source),
                    )
                return target

            jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
            with ThreadPoolExecutor(jobs) as pool:
                return list(pool.map(compile_one, sources))

    return BuildKernels


def main() -> None:
    reason = reason_for_pure_python()
    if reason:
        # pip shows this with -v only; codecllm names the missing library at run time as well.
        print(f"*** codecllm: pure-Python build, no compiled kernels: {reason}", file=sys.stderr)
        setup()
        return
    # torch and setuptools each have an own idea of the compiler; agree on one that exists.
    os.environ.setdefault("CXX", find_compiler())
    setup(
        ext_modules=extensions(),
        cmdclass={"build_ext": build_ext_command()},
        options={"bdist_wheel": {"py_limited_api": PYTHON_TARGET}},
    )


if __name__ == "__main__":
    main()
