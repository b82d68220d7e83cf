"""Which coding a weight gets: the rule, who says what, and what a single matrix cannot have."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import codecllm
import codecllm_ops
from codecllm.nn import Codec, CompressedEmbedding, CompressedLinear, recode
from codecllm.nn.coding import MEASURED, Choice, Device, choose, free_bytes, wish
from module_cases import assert_bits_equal, linear

H200 = Device("cuda", "NVIDIA H200", 18.8)
RTX_4090 = Device("cuda", "NVIDIA GeForce RTX 4090", 3.1)
TABLE = {"cuda": {"fixed": 1.0, "rans": 1.1}, "H200": {"fixed": 1.3, "rans": 0.9}}


@pytest.fixture
def unsaid(monkeypatch):
    """Nobody has said which coding: the rule decides."""
    monkeypatch.delenv("CODECLLM_CODING")


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (Device("cpu"), "fixed"),
        (H200, "fixed"),
        (RTX_4090, "rans"),
        (Device("cuda", "unknown"), "fixed"),
        (Device("mps"), "fixed"),
    ],
)
def test_devices(device, expected):
    choice = choose(device)
    assert choice.coding == expected and choice.reason
    predicted = device.bytes_per_clock is not None
    assert ("predicted" in choice.reason) == predicted
    assert str(choice) == f"{expected}: {choice.reason}"


def test_more_bandwidth_never_turns_a_gpu_to_rans():
    codings = [choose(Device("cuda", "x", 0.5 * i)).coding for i in range(1, 60)]
    assert codings == sorted(codings, key=["rans", "fixed"].index)
    assert set(codings) == {"rans", "fixed"}


def test_short_memory_is_rans_and_says_so():
    for device in (Device("cpu"), H200):
        assert choose(device, fixed_bytes=2**30, room=2**30).coding == "fixed"
        short = choose(device, fixed_bytes=2**30, room=2**29)
        assert short == Choice("rans", "memory is short: fixed takes 1.00 GiB, 0.50 are there")


def test_what_is_measured_beats_what_is_predicted():
    assert choose(RTX_4090, measured=TABLE).coding == "rans"
    choice = choose(H200, measured=TABLE)
    assert choice.coding == "fixed" and "measured on NVIDIA H200: fixed 1.3" in choice.reason
    assert choose(H200, measured={}) == choose(H200)
    assert choose(Device("cpu"), measured={"cpu": {"fixed": 0.5, "rans": 0.6}}).coding == "rans"


def test_the_table_names_both_codings():
    for speeds in MEASURED.values():
        assert set(speeds) == {"fixed", "rans"}


def test_who_is_heard(unsaid, monkeypatch):
    assert wish("auto") == wish() and not wish().explicit
    monkeypatch.setenv("CODECLLM_CODING", "RANS")
    assert (wish().coding, wish().source) == ("rans", "CODECLLM_CODING=rans")
    with codecllm.default_coding("fixed"):
        assert wish("auto").coding == "fixed" and not wish().demanded
        assert wish("auto", "rans").coding == "rans" and wish("rans").demanded
        with pytest.raises(ZeroDivisionError), codecllm.default_coding("auto"):
            assert wish().coding == "rans"
            raise ZeroDivisionError
        assert wish().coding == "fixed"
    assert wish().coding == "rans"


def test_wrong_names(unsaid, monkeypatch):
    message = "coding 'fxied' is unknown; known: 'auto', 'fixed', 'rans'"
    for make in (
        lambda: wish("fxied"),
        lambda: Codec(coding="fxied"),
        lambda: codecllm.load_codec(coding="fxied"),
        lambda: CompressedLinear(linear(), coding="fxied"),
        lambda: codecllm.default_coding("fxied").__enter__(),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    monkeypatch.setenv("CODECLLM_CODING", "fxied")
    with pytest.raises(ValueError, match="CODECLLM_CODING=fxied is not one of auto, fixed, rans"):
        CompressedLinear(linear())


def test_modules_say_what_they_have_and_why(unsaid):
    module = CompressedLinear(linear())
    assert module.coding == "fixed" and "measured on a CPU" in module.coding_reason
    assert CompressedLinear(linear(), coding="rans").coding == "rans"
    embedding = CompressedEmbedding(nn.Embedding(64, 32, dtype=torch.bfloat16), coding="fixed")
    assert (embedding.coding, embedding.coding_reason) == ("fixed", "asked for")
    assert CompressedLinear.from_streams(96, 80, None).coding == ""


def test_codec_options_of_rans_mean_rans(unsaid):
    module = CompressedLinear(linear(), Codec(predictor="left"))
    assert module.coding == "rans" and "predictor=left" in module.coding_reason
    with pytest.raises(ValueError, match="scale_bits=9"):
        CompressedLinear(linear(), Codec(scale_bits=9), coding="fixed")
    with pytest.raises(ValueError, match="predictor=left"):
        Codec(predictor="left", coding="fixed")
    module = CompressedLinear(linear(), Codec(tile_cols=8192))  # fixed has 4096 at most
    assert module.coding == "rans" and "tile_cols=8192" in module.coding_reason
    with pytest.raises(ValueError, match="tile_cols=8192"):
        CompressedLinear(linear(), Codec(tile_cols=8192), coding="fixed")
    assert CompressedLinear(linear(), Codec(tile_cols=32)).coded.info.tile_cols == 32


def test_a_state_of_another_coding_says_so():
    rans, fixed = (CompressedLinear(linear(), coding=coding) for coding in ("rans", "fixed"))
    rans.load_state_dict(fixed.state_dict())
    assert (rans.coding, rans.coding_reason) == ("fixed", "as it was loaded")


def test_a_tensor_that_is_only_kept_is_rans_unless_asked(unsaid):
    w = linear(96, 128).weight
    kept = codecllm.CompressedTensor(None, w)
    fixed = codecllm.load_codec(coding="fixed").encode(w)
    assert (kept.coding, fixed.coding) == ("rans", "fixed")
    assert_bits_equal(fixed.decompress(), w.detach())
    assert "coding='fixed'" in repr(fixed)


@pytest.mark.parametrize("format", ["lossless", "int8"])
def test_fixed_where_it_does_not_exist(unsaid, format):
    dense = linear(256, 512, dtype=torch.float16 if format == "lossless" else torch.bfloat16)
    with pytest.raises(codecllm.UnsupportedFormatError, match="bf16"):
        CompressedLinear(dense, format=format, coding="fixed")
    module = CompressedLinear(dense, format=format)
    assert module.coding in ("rans", "stored")  # uniform weights have nothing to gain as int8
    assert module.coding_reason.endswith("fixed is for bf16")


def spread(share, rows=64, cols=256):
    """Normal weights, and a share of them far too small for their window."""
    w = torch.randn(rows, cols, generator=torch.Generator().manual_seed(0)).mul_(0.02)
    flat = w.view(-1)
    flat[:: max(1, round(1 / share)) if share else flat.numel() + 1] = 1e-30
    return w.bfloat16()


@pytest.mark.parametrize(
    ("share", "expected"), [(0, "fixed"), (0.004, "fixed"), (0.01, "rans"), (0.2, "rans")]
)
def test_a_matrix_with_many_weights_outside_stays_rans(share, expected):
    w = spread(share)
    rans = codecllm_ops.encode(w)
    converted, why = recode.recoded(rans, "fixed")
    assert converted.coding == expected
    assert ("outside the window" in why) == (expected == "rans")
    coded, reason = recode.encode_chosen(Codec(), w, "lossless", Choice("fixed", "because"))
    assert coded.coding == expected and (reason == "because") == (expected == "fixed")
    assert_bits_equal(codecllm_ops.decode(coded), w)


def test_hopeless_matrices_are_known_without_trying():
    """Of each other weight a list would be twice the dense matrix."""
    hopeless, fine = spread(0.5), spread(0.001)
    for w, bad in ((hopeless, True), (fine, False), (torch.zeros_like(fine), False)):
        assert bool(recode.hopeless_dense(w)) is bad
        assert bool(recode.hopeless(codecllm_ops.encode(w, allow_stored=False))) is bad
    subnormal = torch.full((32, 64), 1e-40).bfloat16()
    assert recode.hopeless_dense(subnormal)


def test_zeros_need_no_window():
    w = spread(0)
    w[:, ::2] = 0
    w[:, 1::4] = -0.0
    coded, why = recode.recoded(codecllm_ops.encode(w), "fixed")
    assert coded.coding == "fixed" and not why and recode.listed(coded.info) == 0
    assert_bits_equal(codecllm_ops.decode(coded), w)


def test_sizes_are_known_from_the_head():
    for shape in ((64, 1024), (33, 70), (4096, 16)):
        w = torch.randn(shape).mul_(0.02).bfloat16()
        rans = codecllm_ops.encode(w, allow_stored=False)
        fixed = rans.to("fixed")
        about = recode.about_fixed_bytes(rans.info)
        assert 0 <= about - (fixed.nbytes - fixed.raw.numel()) <= 128


def test_free_memory_of_this_machine():
    assert free_bytes(torch.device("cpu")) > 2**20
    assert free_bytes(torch.device("meta")) is None
