"""The command line as a user meets it: exit codes, streams, JSON, sentences instead of traces."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("typer")

from codecllm.cli import app


def run(*arguments):
    """In this process: importing torch takes longer than the commands do."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = app.run([str(a) for a in arguments])
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def run_process(*arguments, path=()):
    searched = [*map(str, path), *(p for p in sys.path if p)]
    return subprocess.run(
        [sys.executable, "-m", "codecllm.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(searched)},
        check=False,
    )


def test_the_whole_way(folder, tmp_path):
    dst = tmp_path / "dst"
    assert "bits/weight" in run("estimate", folder).stdout
    done = run("compress", folder, dst, "--jobs", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1
    assert " MiB (" in done.stdout and " bits/weight, " in done.stdout
    assert "equal bit by bit" in run("verify", folder, dst).stdout
    assert "checksums match" in run("verify", dst).stdout
    listing = run("info", dst).stdout
    assert "model.layers.0.self_attn.q_proj.weight" in listing and "64x64" in listing
    assert run("decompress", dst, tmp_path / "back").returncode == 0


def test_json_is_all_of_stdout(folder, tmp_path):
    dst = tmp_path / "dst"
    for command in (
        ("estimate", folder),
        ("compress", folder, dst),
        ("verify", folder, dst),
        ("info", dst),
        ("decompress", dst, tmp_path / "back"),
        ("doctor",),
    ):
        done = run(*command, "--json")
        assert done.returncode == 0, done.stderr
        assert isinstance(json.loads(done.stdout), dict)


def test_a_mismatch_is_exit_code_1(folder, tmp_path):
    run("compress", folder, tmp_path / "dst")
    path = folder / "model-00001-of-00002.safetensors"
    state = load_file(path)
    state["model.embed_tokens.weight"].view(torch.int16)[3, 5] ^= 1
    save_file(state, path)
    done = run("verify", folder, tmp_path / "dst")
    assert done.returncode == 1 and "first at [3, 5]" in done.stdout
    assert json.loads(run("verify", folder, tmp_path / "dst", "--json").stdout)["ok"] is False


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("compress", "nowhere", "x"), "nowhere is not a folder"),
        (("verify", "{src}"), "not compressed"),
        (("compress", "{src}", "{src}"), "two folders"),
        (("compress", "{src}", "x", "--skip", "("), "not a regular expression"),
        (("compress", "{src}", "x", "--format", "zip"), "known: lossless, int8"),
        (("compress", "{src}", "x", "--jobs", "0"), "at least 1"),
        (("compress", "{src}", "/proc/x"), "/proc/x"),
    ],
)
def test_errors_are_one_sentence_on_stderr(folder, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    done = run(*(a.format(src=folder) for a in arguments))
    assert done.returncode == 1 and done.stdout == ""
    assert sentence in done.stderr and done.stderr.startswith("codecllm: ")
    assert len(done.stderr.splitlines()) == 1


def test_usage_errors_are_exit_code_2():
    done = run_process("compres")
    assert done.returncode == 2 and "No such command" in done.stderr


def test_existing_destination_names_the_flag(folder, tmp_path):
    (tmp_path / "dst").mkdir()
    done = run("compress", folder, tmp_path / "dst")
    assert done.returncode == 1 and "--force" in done.stderr
    assert run("compress", folder, tmp_path / "dst", "--force").returncode == 0


def test_without_typer_it_says_what_to_install(tmp_path):
    (tmp_path / "typer.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'typer'\", name='typer')\n"
    )
    done = run_process(path=[tmp_path])
    assert done.returncode == 1 and "pip install 'codecllm[cli]'" in done.stderr


def test_generate_prints_only_new_text(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {w: i for i, w in enumerate(["<unk>", *(f"w{i}" for i in range(127))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<unk>")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "src")
    fast.save_pretrained(tmp_path / "src")
    assert run("compress", tmp_path / "src", tmp_path / "dst").returncode == 0
    common = ("--prompt", "w3 w5", "--max-new-tokens", "6", "--json")
    dense = json.loads(run("generate", tmp_path / "src", *common).stdout)
    exact = json.loads(run("generate", tmp_path / "dst", "--exact", *common).stdout)
    assert exact["tokens"] == dense["tokens"] and len(exact["tokens"][0]) == 6
    assert "w3 w5" not in exact["texts"][0]
    assert exact["weight_bytes"] > 0 and exact["tokens_per_second"] > 0
