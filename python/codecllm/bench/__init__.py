"""`codecllm bench`: dense weights against coded ones on this machine, speed and memory."""

from .report import BenchReport
from .run import BATCHES, CODINGS, PARTS, run_bench

__all__ = ["BATCHES", "CODINGS", "PARTS", "BenchReport", "run_bench"]
