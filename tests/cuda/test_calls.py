"""What a call does besides its kernels: plans are remembered, kernels are loaded once, and a CUDA
graph may be captured in the first call of a process."""

from __future__ import annotations

import threading

import pytest
import torch

import codecllm_ops as ops
from cases import FORMATS, weights
from cuda import emulated
from cuda.emulated import GOOD, Device

# Of cudaError_t.
INVALID_VALUE, NO_KERNEL_IMAGE, CAPTURE_UNSUPPORTED = 1, 209, 900


@pytest.fixture(scope="module")
def coded():
    return ops.encode(weights(40, 200, FORMATS["bf16"]), tile_cols=64, allow_stored=False)


_sizes = iter(range(200 << 10, 220 << 10, 1024))


@pytest.fixture
def device():
    """One that no kernel was prepared for; the pretended runtime is as usual before and after."""
    emulated.runtime()
    shared = next(_sizes)
    yield Device(90, 3, shared, shared + 1024)
    emulated.runtime()


def fields(plan) -> list:
    return [getattr(plan, name) for name, _ in plan._fields_]


def test_a_remembered_plan_is_the_plan(coded):
    view, _table = emulated.view_of(coded)
    for device in (Device(), Device(90, 40), Device(90, 3, 48 << 10, 49 << 10), Device(75)):
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for m in (1, 3, 4, 64, 65):
                for cols, tile_rows in ((200, 3), (16, 3), (200, 300)):
                    view.cols, view.tile_rows = cols, tile_rows
                    view.col_tiles = -(-cols // 64)
                    made = fields(emulated.plan_of(view, m, dtype, device))
                    for _ in range(2):
                        assert fields(emulated.cached_plan_of(view, m, dtype, device)) == made


def test_a_remembered_plan_depends_on_the_streams_size(coded):
    """Buffers hold a tile of average size."""
    view, _table = emulated.view_of(coded)
    small = emulated.cached_plan_of(view, 1, torch.bfloat16)
    view.stream_bytes *= 4
    large = emulated.cached_plan_of(view, 1, torch.bfloat16)
    assert fields(large) == fields(emulated.plan_of(view, 1, torch.bfloat16)) != fields(small)


def test_layers_of_one_shape_share_plans():
    """Their streams differ by some percent, their plans by the size of a buffer, if at all."""
    view, _table = emulated.view_of(ops.encode(weights(64, 2048, FORMATS["bf16"])))
    average, plans = view.stream_bytes, set()
    for percent in range(-5, 6):
        view.stream_bytes = average * (100 + percent) // 100
        plans.add(tuple(fields(emulated.plan_of(view, 1, torch.bfloat16))))
    assert len(plans) <= 4


def test_a_remembered_plan_is_cheap():
    view, _table = emulated.view_of(ops.encode(weights(64, 4096, FORMATS["bf16"])))
    made = emulated.plan_nanoseconds(view, 1, cached=False, repeats=200)
    found = min(emulated.plan_nanoseconds(view, 1, cached=True, repeats=2000) for _ in range(5))
    assert 0 < found < made / 4


def test_plans_from_many_threads(coded):
    """Each thread sees the plan of its own shape while others add theirs."""
    wrong = []

    def work(seed: int) -> None:
        view, _table = emulated.view_of(coded)
        for i in range(300):
            view.tile_rows = 1 + (seed * 37 + i * 11) % 90
            found = fields(emulated.cached_plan_of(view, 1, torch.bfloat16))
            if found != fields(emulated.plan_of(view, 1, torch.bfloat16)):
                wrong.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_no_plan_for_more_rows_than_a_kernel_takes(coded):
    assert emulated.PATHS[emulated.plan(coded, 65, torch.bfloat16).path] == "none"
    assert emulated.launch_nothing_error(coded) == INVALID_VALUE


def test_a_kernel_is_loaded_once_per_device(coded, device):
    for _ in range(3):
        emulated.decode(coded, device)
    calls = emulated.runtime()
    assert (calls.loads, calls.attributes, calls.launches) == (1, 1, 3)
    emulated.decode(coded, Device(90, 3, 230 << 10, 231 << 10))
    assert emulated.runtime().loads == 1


def test_the_first_call_may_be_captured(coded, device):
    emulated.runtime(capturing=True)
    x = torch.randn(3, 200, dtype=torch.bfloat16)
    out, status = emulated.linear(x, coded, device=device)
    assert status == GOOD and out.isfinite().all()
    calls = emulated.runtime()
    assert calls.launches == 1
    assert calls.strict, "the thread's capture mode is not put back"


def test_a_driver_that_loads_nothing_while_capturing_is_named(coded, device):
    emulated.runtime(capturing=True, loads_in_capture=False)
    assert emulated.decode_error(coded, device) == CAPTURE_UNSUPPORTED
    calls = emulated.runtime()
    assert calls.launches == 0 and calls.strict
    # Afterwards, and in a capture from then on, all is well.
    assert emulated.decode_error(coded, device) == 0
    emulated.runtime(capturing=True, loads_in_capture=False)
    assert emulated.decode_error(coded, device) == 0


def test_a_device_is_not_written_off_because_of_a_capture():
    """Only "no code for this device" says that there is none."""
    emulated.runtime(capturing=True, loads_in_capture=False)
    assert emulated.device_error(50) == (CAPTURE_UNSUPPORTED, False)
    emulated.runtime()
    assert emulated.device_error(50) == (0, True)
    emulated.runtime(error=NO_KERNEL_IMAGE)
    assert emulated.device_error(51) == (0, False)
    emulated.runtime()
    assert emulated.device_error(51) == (0, False), "what is known of a device is kept"
