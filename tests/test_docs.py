"""Every command and example in the README and in docs/ runs, and every figure has a source."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGE_IDS = [p.name for p in PAGES]


def blocks(page: Path, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(page.read_text()) if name == language]


def commands(page: Path) -> list[str]:
    lines = "\n".join(blocks(page, "sh")).splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.partition("#")[0].strip()]


EXAMPLES = [(p, i) for p in PAGES for i in range(len(blocks(p, "python")))]
CLI = [(p, c) for p in PAGES for c in commands(p) if c.startswith("codecllm ")]
MAKE = [(p, c) for p in PAGES for c in commands(p) if c.startswith("make ")]


@pytest.mark.parametrize(("page", "number"), EXAMPLES, ids=lambda v: getattr(v, "name", str(v)))
def test_python_examples_run(page, number, tmp_path):
    subprocess.run([sys.executable, "-c", blocks(page, "python")[number]], cwd=tmp_path, check=True)


@pytest.mark.parametrize(("page", "command"), MAKE, ids=lambda v: getattr(v, "name", v))
def test_make_targets_exist(page, command):
    subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, check=True, capture_output=True)


FILES = re.compile(r"`((?:codecllm_ops|python|csrc|tests|tools|bench)/[\w./-]+)`")
SHORT = re.compile(r"`([\w/]+\.(?:py|h|cuh|cu|cpp))`")


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_files_that_pages_name_exist(page):
    """Recipes list files; names without a folder are of one somewhere."""
    text = page.read_text()
    assert [f for f in FILES.findall(text) if not (ROOT / f).exists()] == []
    folders = ("codecllm_ops", "python", "csrc", "tests", "tools", "bench")
    there = [f"/{f.relative_to(ROOT)}" for d in folders for f in (ROOT / d).rglob("*.*")]
    there.append("/setup.py")
    short = [f for f in SHORT.findall(text) if not any(t.endswith(f"/{f}") for t in there)]
    assert short == []


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A folder with `path/to/model`: a tiny random Llama and a tokenizer of words."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    import torch

    folder = tmp_path_factory.mktemp("docs")
    words = ["<unk>", "</s>", "The", "capital", "of", "France", "is", "Paris"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=1, pad_token_id=1,
        bos_token_id=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder / "path/to/model")
    fast.save_pretrained(folder / "path/to/model")
    return folder


def test_the_commands_of_the_docs_run_in_order(model_folder):
    assert CLI, "no codecllm command in the docs: the pattern is wrong"
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for _, command in CLI:
        done = subprocess.run(
            shlex.split(command), cwd=model_folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=PAGE_IDS)
def test_files_named_in_the_docs_exist(page):
    names = re.findall(
        r"`((?:codecllm_ops|csrc|python|bench|tests|docs)/[\w./-]+)`", page.read_text()
    )
    for name in names:
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_results_name_device_and_commit():
    files = sorted((ROOT / "bench" / "results").glob("*.json"))
    assert files
    for file in files:
        result = json.loads(file.read_text())
        assert result["device"]
        assert re.fullmatch(r"[0-9a-f]{12}", result["commit"])
        assert result["results"]
