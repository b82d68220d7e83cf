"""What gets shipped: the pure-Python wheel, the build's decisions, the tracked files."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Folders that exist on the machine of one developer. Spelled so that this file does not match.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/\w")


def tracked_files() -> list[Path]:
    """Files that are, or with the next commit could be, part of the repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [p for name in listing.stdout.split("\0") if name and (p := ROOT / name).is_file()]


@pytest.fixture(scope="module")
def setup_module():
    """setup.py as a module: its functions, without running a build."""
    spec = importlib.util.spec_from_file_location("codecllm_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the repository: a build leaves folders behind."""
    pytest.importorskip("setuptools", minversion="77")
    tree = tmp_path_factory.mktemp("tree")
    for path in tracked_files():
        target = tree / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tree


@pytest.fixture(scope="module")
def pure_wheel(tree, tmp_path_factory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--wheel-dir", str(out), str(tree)],
        env={**os.environ, "CODECLLM_NO_EXT": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pure-Python build, no compiled kernels: CODECLLM_NO_EXT=1" in done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        yield archive


def test_pure_wheel_runs_everywhere(pure_wheel):
    assert Path(pure_wheel.filename).name.endswith("-py3-none-any.whl")
    assert not [n for n in pure_wheel.namelist() if n.endswith((".so", ".cpp", ".h"))]


def test_pure_wheel_holds_every_module(pure_wheel):
    sources = [p for p in tracked_files() if p.suffix == ".py"]
    expected = {
        p.relative_to(base).as_posix()
        for package, base in (("codecllm_ops", ROOT), ("codecllm", ROOT / "python"))
        for p in sources
        if p.is_relative_to(base / package)
    }
    assert expected
    assert {n for n in pure_wheel.namelist() if n.endswith(".py")} == expected


def test_wheel_metadata(pure_wheel):
    (info,) = {n.split("/")[0] for n in pure_wheel.namelist() if ".dist-info/" in n}
    metadata = Parser().parsestr(pure_wheel.read(f"{info}/METADATA").decode())
    assert metadata["Name"] == "codecllm"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "codecllm = codecllm.cli:main" in pure_wheel.read(f"{info}/entry_points.txt").decode()
    required = {r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r}
    assert required == {"torch>=2.11", "numpy", "safetensors"}


def test_source_distribution_holds_what_is_compiled(tree, tmp_path):
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)]
    environment = {**os.environ, "CODECLLM_NO_EXT": "1"}
    subprocess.run(command, cwd=tree, env=environment, capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    expected = {str(p.relative_to(ROOT)) for p in tracked_files() if (ROOT / "csrc") in p.parents}
    assert expected and expected <= names
    assert {"setup.py", "pyproject.toml", "LICENSE"} <= names


def test_build_does_not_require_torch():
    # A plain text search: tomllib is not in Python 3.10.
    text = (ROOT / "pyproject.toml").read_text()
    requires = re.search(r"^requires = \[(.*?)\]", text, re.MULTILINE)
    assert requires and "torch" not in requires.group(1)


@pytest.mark.parametrize(
    ("name", "isa"),
    [
        ("decode.cpp", None),
        ("avx2.cpp", None),
        ("decode_avx2.cpp", "avx2"),
        ("decode_avx512.cpp", "avx512"),
        ("decode_avx512bf16.cpp", "avx512bf16"),
        ("decode_avx512_tables.cpp", None),
    ],
)
def test_kernel_flags_follow_the_file_name(setup_module, name, isa):
    source = Path("csrc/cpu", name)
    assert setup_module.isa_of(source) == isa
    own_flags = setup_module.kernel_flags(source)[len(setup_module.CXX_FLAGS) :]
    assert own_flags == setup_module.ISA_FLAGS.get(isa, [])


def test_kernels_link_portable_code_first(setup_module, tmp_path, monkeypatch):
    # The linker keeps the first copy of an inline function: it must be one that runs everywhere.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(setup_module, "X86", True)
    folder = tmp_path / "csrc/cpu"
    folder.mkdir(parents=True)
    for name in ("a_avx512bf16", "b_avx512", "c_avx2", "d", "e"):
        (folder / f"{name}.cpp").touch()
    assert [p.stem[0] for p in setup_module.kernel_sources()] == ["d", "e", "c", "b", "a"]
    monkeypatch.setattr(setup_module, "X86", False)
    assert [p.stem[0] for p in setup_module.kernel_sources()] == ["d", "e"]


def test_missing_compiler_means_pure_python(setup_module, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.delenv("CODECLLM_NO_EXT", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(setup_module.shutil, "which", lambda command: None)
    assert "no C++ compiler" in setup_module.reason_for_pure_python()


def test_wrong_compiler_is_an_error(setup_module, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit, match="no-such-compiler"):
        setup_module.find_compiler()


def test_cuda_architectures_become_flags(setup_module, capsys):
    known = "sm_75 sm_80 sm_90 sm_120"
    flags = setup_module.cuda_arch_flags("8.0;9.0a 12.0+PTX", known)
    assert flags == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]
    assert setup_module.cuda_arch_flags("10.0a", known) == []
    assert "does not know sm_100" in capsys.readouterr().err


def test_cuda_that_cannot_be_built_is_an_error(setup_module, monkeypatch):
    monkeypatch.setattr(setup_module, "cuda_home", lambda: None)
    monkeypatch.setenv("CODECLLM_CUDA", "1")
    with pytest.raises(SystemExit, match="no nvcc"):
        setup_module.wants_cuda()
    monkeypatch.setenv("CODECLLM_CUDA", "yes")
    with pytest.raises(SystemExit, match="not auto, 0 or 1"):
        setup_module.wants_cuda()
    monkeypatch.setenv("CODECLLM_CUDA", "0")
    assert not setup_module.wants_cuda()


def test_no_machine_paths_in_tracked_files():
    found = []
    for path in tracked_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # binary, for instance a golden file
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
            for number, line in enumerate(lines, 1)
            if MACHINE_PATH.search(line)
        ]
    assert not found, "\n".join(found)
