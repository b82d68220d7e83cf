"""The plot of docs/ is made from what `codecllm bench --json` prints."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from codecllm.bench import run_bench
from model_cases import make_folder

pytest.importorskip("matplotlib")


def test_a_report_becomes_a_small_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("codecllm.bench.weights.cache_bytes", lambda: 1)
    path = Path(__file__).parents[2] / "bench" / "plot.py"
    spec = importlib.util.spec_from_file_location("plot", path)
    assert spec and spec.loader
    plot = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plot)
    folder = make_folder(tmp_path / "src", width=256)
    report = run_bench(folder, parts=["linear"], quick=True)
    plot.draw(report.to_dict(), tmp_path / "plot.png")
    picture = (tmp_path / "plot.png").read_bytes()
    assert picture[:4] == b"\x89PNG" and 10_000 < len(picture) < 100_000
