"""The commands: what they print and write."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("typer")

from cli_cases import run
from model_cases import tiny_llama


def test_the_whole_way(folder, tmp_path):
    dst = tmp_path / "dst"
    assert "bits/weight" in run("estimate", folder).stdout
    done = run("compress", folder, dst, "--jobs", "2")
    assert (done.returncode, done.stderr) == (0, "")
    sizes, memory, codings = done.stdout.splitlines()
    assert " MiB (" in sizes and " bits/weight, " in sizes
    assert memory == "in memory: not known, config.json names no architectures"
    assert codings.startswith("in memory fixed: 7 matrices, ") and "measured on a CPU" in codings
    compared = run("verify", folder, dst).stdout
    assert compared.startswith("10 tensors compared, 7 of them coded, ")
    assert "equal bit by bit" in compared
    checked = run("verify", dst).stdout
    assert checked.startswith("7 coded tensors, ") and "checksums match" in checked
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
    assert "MiB: 1 differ or are in one folder only, " in done.stdout
    assert json.loads(run("verify", folder, tmp_path / "dst", "--json").stdout)["ok"] is False


def test_int8_is_not_called_equal(folder, tmp_path):
    run("compress", folder, tmp_path / "dst", "--format", "int8")
    said = run("verify", folder, tmp_path / "dst").stdout
    assert "7 are int8: integers and scales are those that the source rounds to; all others" in said


def test_what_stays_dense_is_said(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=512, n_embd=64, n_layer=1, n_head=4)
    transformers.GPT2LMHeadModel(config).to(torch.bfloat16).save_pretrained(tmp_path / "src")
    for command in (("estimate",), ("compress", tmp_path / "dst")):
        done = run(command[0], tmp_path / "src", *command[1:])
        _, *dense, memory, _ = done.stdout.splitlines()
        assert "dense: 4 matrices, 0.094 MiB: Conv1D, not nn.Linear" in dense
        assert memory.startswith("in memory 0.") and "dense: 0.125 a position or type" in memory


def test_generate_prints_only_new_text(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {w: i for i, w in enumerate(["<unk>", *(f"w{i}" for i in range(127))])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<unk>")
    tiny_llama(num_hidden_layers=1).save_pretrained(tmp_path / "src")
    fast.save_pretrained(tmp_path / "src")
    assert run("compress", tmp_path / "src", tmp_path / "dst").returncode == 0
    common = ("--prompt", "w3 w5", "--max-new-tokens", "6", "--json")
    dense = json.loads(run("generate", tmp_path / "src", *common).stdout)
    exact = json.loads(run("generate", tmp_path / "dst", "--exact", *common).stdout)
    assert exact["tokens"] == dense["tokens"] and len(exact["tokens"][0]) == 6
    assert "w3 w5" not in exact["texts"][0]
    assert exact["weight_bytes"] > 0 and exact["tokens_per_second"] > 0
    assert exact["chat"] is False
    # A chat model gets a message, and is told so: a sentence to go on with needs --no-chat.
    fast.chat_template = "{% for m in messages %}w9 {{ m['content'] }} w9{% endfor %}"
    fast.save_pretrained(tmp_path / "dst")
    asked = run("generate", tmp_path / "dst", *common[:-1])
    assert asked.stderr.splitlines()[-1].startswith("prompts went in as messages of a chat; --no-")
    told = json.loads(run("generate", tmp_path / "dst", "--exact", "--no-chat", *common).stdout)
    assert told["tokens"] == dense["tokens"] and told["chat"] is False


def test_both_codings(folder, tmp_path):
    rans, fixed, back = tmp_path / "rans", tmp_path / "fixed", tmp_path / "back"
    run("compress", folder, rans)
    done = run("compress", folder, fixed, "--coding", "fixed")
    assert done.returncode == 0 and "12." in done.stdout
    assert "in memory fixed: 7 matrices" in done.stdout
    done = run("convert", fixed, back, "--coding", "rans", "--jobs", "2")
    assert (done.returncode, done.stderr) == (0, "")
    for shard in rans.glob("*.safetensors"):
        assert shard.read_bytes() == (back / shard.name).read_bytes()
    assert run("verify", folder, fixed).returncode == 0
    assert run("estimate", folder, "--coding", "fixed").returncode == 0
    again = run("convert", fixed, back, "--coding", "rans")
    assert again.returncode == 1 and "exists" in again.stderr
    assert run("convert", fixed, back).returncode == 2  # which coding has to be said
    wrong = run("convert", rans, tmp_path / "x", "--coding", "auto")
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1
    assert "coding 'auto' is not one that files have" in wrong.stderr


def test_info_says_what_is_in_the_file_and_in_memory(folder, tmp_path):
    run("compress", folder, tmp_path / "rans")
    listing = run("info", tmp_path / "rans").stdout
    row = next(line for line in listing.splitlines() if "q_proj" in line)
    assert row.split()[2:4] == ["bf16", "rans"] and "fixed" in row.split()
    assert "in memory fixed: 7 matrices" in listing and "measured on a CPU" in listing
    report = json.loads(run("info", tmp_path / "rans", "--json").stdout)
    assert (report["codings"], report["memory_codings"]) == ({"rans": 7}, {"fixed": 7})
    assert report["bits_per_weight"] != report["memory_bits_per_weight"]
    assert {x["memory_coding"] for x in report["layers"] if x["status"] == "coded"} == {"fixed"}


def test_doctor_says_which_coding_and_why(monkeypatch):
    found = json.loads(run("doctor", "--json").stdout)
    assert found["coding"]["cpu"].startswith("fixed: measured on a CPU")
    monkeypatch.setenv("CODECLLM_CODING", "rans")
    assert "rans: CODECLLM_CODING=rans" in run("doctor").stdout
    monkeypatch.setenv("CODECLLM_CODING", "x")
    assert "CODECLLM_CODING=x is not one of auto, fixed, rans" in run("doctor").stdout
