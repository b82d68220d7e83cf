"""A short run of the fuzzer of the CPU kernels; `make fuzz` does a long one."""

from __future__ import annotations

import sys

import pytest

from fuzz import run

CASES = 2000


@pytest.mark.skipif(sys.platform == "win32" or not run.find_compiler(), reason="no C++ compiler")
def test_kernels_stay_inside_their_buffers_whatever_the_bytes_say():
    done = run.fuzz(CASES, seed=0, optimize=0)
    assert done.returncode == 0, done.stderr[-5000:]
    cases, corrupt = (int(word) for word in done.stdout.split() if word.isdigit())
    assert cases == CASES and 0.3 * CASES < corrupt < 0.95 * CASES
