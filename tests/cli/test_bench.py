"""`codecllm bench`: what it prints. No figure is compared with anything: machines differ."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("typer")

from cli_cases import run
from model_cases import make_folder


@pytest.fixture(autouse=True)
def few_weights(monkeypatch):
    monkeypatch.setattr("codecllm.bench.weights.cache_bytes", lambda: 1)


def test_a_table_of_products(tmp_path):
    folder = make_folder(tmp_path / "mine", width=256)
    done = run("bench", folder, "--quick", "--batch", "1", "--batch", "5", "--part", "linear")
    assert (done.returncode, done.stderr) == (0, "")
    heading, *table = done.stdout.splitlines()
    assert " threads, kernels " in heading and "codecllm 0." in heading
    assert str(tmp_path) not in done.stdout
    rows = [line.split() for line in table if line.strip()]
    assert rows[1] == ["[N,", "K]", "layers", "coding", "bits", "M=1", "M=5"]
    assert rows[2][:3] == ["256x256", "6", "fixed"] and len(rows[2]) == 6
    assert rows[3][0] == "rans" and rows[4][:2] == ["bf16,", "ms"]


def test_json_names_the_machine_and_no_path(tmp_path):
    folder = make_folder(tmp_path / "mine", width=256)
    arguments = ("--quick", "--batch", "2", "--part", "linear", "--coding", "fixed", "--json")
    done = run("bench", folder, *arguments)
    found = json.loads(done.stdout)
    assert {"device", "threads", "isa", "torch", "commit", "date"} <= found.keys()
    assert found["model"] == "mine" and str(tmp_path) not in done.stdout
    (result,) = found["results"]["linear"]
    assert list(result["of_linear_speed"]) == ["fixed"] and result["batch"] == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nowhere",), "nowhere is not a folder"),
        (("--part", "memory"), "name its folder"),
        (("--threads", "0"), "threads are at least 1"),
    ],
)
def test_errors_are_sentences(arguments, sentence):
    done = run("bench", *arguments)
    assert done.returncode == 1 and done.stdout == ""
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1
