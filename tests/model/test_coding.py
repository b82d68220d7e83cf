"""set_coding, and coding= of compress_model_weights: what changes, what stays, what is refused."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import codecllm
from codecllm.nn import STREAM_NAMES, CodedModule, CodedWeight, CompressedLinear
from codecllm.nn.coding import Choice
from model_cases import Tied

BOTH = pytest.mark.parametrize(("before", "after"), [("rans", "fixed"), ("fixed", "rans")])


def compressed(coding, seed=0, **options):
    torch.manual_seed(seed)
    model = Tied()
    for weight in model.parameters():
        weight.data.view(-1)[7] = 1e-30  # escape of rans, listed in fixed
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    codecllm.compress_model_weights(model, coding=coding, **options)
    return model, expected


def codings(model):
    return {n: m.coding for n, m in model.named_modules() if isinstance(m, CodedModule)}


def assert_weights(model, expected):
    for name, weight in expected.items():
        if name.endswith("weight"):
            assert torch.equal(model.get_submodule(name[:-7]).dense_weight(), weight), name


@BOTH
def test_there_and_back(before, after, ids):
    model, expected = compressed(before, exact=True)
    y, first = model(ids), {n: p.detach().clone() for n, p in model.named_parameters()}
    assert set(codings(model).values()) == {before}
    report = codecllm.set_coding(model, after)
    assert set(codings(model).values()) == {after} and report.changed == 3
    assert dict(model.named_parameters()).keys() == first.keys()
    assert torch.equal(model(ids), y)
    assert_weights(model, expected)
    codecllm.set_coding(model, before)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], tensor) for name, tensor in first.items())


@BOTH
def test_tied_modules_stay_tied_and_are_one_line(before, after):
    model, _ = compressed(before)
    report = codecllm.set_coding(model, after)
    assert [x.name for x in report.layers] == ["embed", "blocks.0.q_proj", "blocks.1.q_proj"]
    assert all(a is b for a, b in zip(model.embed.streams, model.head.streams, strict=True))
    assert model.embed.weight is model.head.weight
    assert model.embed.coding == model.head.coding == after


def test_the_report_adds_up_and_says_why():
    model, _ = compressed("rans")
    report = codecllm.set_coding(model, "fixed")
    held = sum(p.nbytes for n, p in model.named_parameters() if "bias" not in n)
    assert report.bytes_after == held != report.bytes_before
    assert {(x.before, x.after, x.reason) for x in report.layers} == {
        ("rans", "fixed", "asked for")
    }
    assert report.choices == {"cpu": Choice("fixed", "asked for")}
    assert report.lines()[0] == "cpu: fixed: asked for"
    assert "fixed: 3 matrices" in report.lines()[1] and "bits per weight" in report.lines()[1]
    now = codecllm.coding_of(model)
    assert [x.after for x in now.layers] == ["fixed"] * 3 and now.changed == 0
    assert now.bytes_after == held
    assert report.to_dict()["layers"][0]["shape"] == (96, 64)


def test_a_predicate_chooses_by_full_name_and_module():
    model, expected = compressed("rans")
    seen = {}

    def predicate(name, module):
        seen[name] = module
        return name != "blocks.1.q_proj"

    codecllm.set_coding(model, "fixed", predicate)
    assert seen["blocks.0.q_proj"] is model.blocks[0]["q_proj"]
    assert codings(model) == {
        "embed": "fixed",
        "blocks.0.q_proj": "fixed",
        "blocks.1.q_proj": "rans",
        "head": "fixed",
    }
    assert_weights(model, expected)


def test_who_shares_a_weight_is_asked_too():
    model, _ = compressed("rans")
    codecllm.set_coding(model, "fixed", lambda name, module: name != "head")
    assert model.embed.coding == model.head.coding == "rans"


def test_auto_is_the_rule(monkeypatch):
    model, _ = compressed("rans")
    report = codecllm.set_coding(model)
    assert "measured on a CPU" in report.choices["cpu"].reason
    assert set(codings(model).values()) == {"fixed"}
    with codecllm.default_coding("rans"):
        assert codecllm.set_coding(model).changed == 3
    assert set(codings(model).values()) == {"rans"}


def test_short_memory_stays_rans(monkeypatch):
    model, _ = compressed("rans")
    monkeypatch.setattr("codecllm.model.coding.free_bytes", lambda device: 1000)
    report = codecllm.set_coding(model)
    assert report.changed == 0 and "memory is short" in report.choices["cpu"].reason
    assert codecllm.set_coding(model, "fixed").changed == 3  # an explicit wish counts


def test_auto_never_encodes(monkeypatch):
    """Minutes for a large model: a folder in fixed stays fixed unless rans is asked for."""
    model, _ = compressed("fixed")
    monkeypatch.setattr("codecllm.model.coding.free_bytes", lambda device: -(10**9))
    report = codecllm.set_coding(model)
    assert report.choices["cpu"].coding == "rans" and report.changed == 0
    assert all("encoding takes long" in x.reason for x in report.layers)


def test_what_gains_nothing_keeps_its_coding():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64, dtype=torch.bfloat16) for _ in range(2)))
    model[1].weight.data.view(-1)[::50] = 1e-30
    report = codecllm.compress_model_weights(model, coding="fixed")
    assert [m.coding for m in model] == ["fixed", "rans"]
    assert "2 % of its weights are outside the window of fixed" in report.layers[1].why
    codecllm.set_coding(model, "rans")
    again = codecllm.set_coding(model, "fixed")
    assert [x.after for x in again.layers] == ["fixed", "rans"]
    assert "outside the window" in again.layers[1].reason


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_fixed_where_no_weight_can_have_it_is_an_error(dtype):
    def model():
        return nn.Sequential(nn.Linear(64, 64, dtype=dtype))

    dense = model()
    with pytest.raises(
        ValueError, match=r'"fixed" is asked for, and no weight .*fixed is for bf16'
    ):
        codecllm.compress_model_weights(dense, coding="fixed")
    assert type(dense[0]) is nn.Linear
    codecllm.compress_model_weights(dense)
    with pytest.raises(ValueError, match='"fixed" is asked for, and no weight here can have it'):
        codecllm.set_coding(dense, "fixed")
    with codecllm.default_coding("fixed"):  # says what "auto" means: no demand
        assert codecllm.set_coding(dense).changed == 0
        codecllm.compress_model_weights(model())


def test_int8_has_no_fixed():
    model = nn.Sequential(nn.Linear(512, 256, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="int8: fixed is for bf16"):
        codecllm.compress_model_weights(model, format="int8", coding="fixed")
    report = codecllm.compress_model_weights(model, format="int8")
    assert report.layers[0].coding != "fixed"
    assert report.layers[0].why == "int8: fixed is for bf16"


def test_a_model_that_is_not_compressed_says_so():
    with pytest.raises(ValueError, match="no module of this model is compressed"):
        codecllm.set_coding(nn.Sequential(nn.Linear(4, 4)))


def test_a_single_module_is_a_model():
    module = CompressedLinear(nn.Linear(64, 64, dtype=torch.bfloat16), coding="rans")
    assert codecllm.set_coding(module, "fixed").changed == 1 and module.coding == "fixed"


def test_from_dense_without_rans_in_between(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("rans was asked for")

    for name in ("_encode_tiles", "_count_pairs", "_count_values"):
        monkeypatch.setattr(torch.ops.codecllm, name, refuse)
    model, expected = compressed("fixed")
    assert_weights(model, expected)


def test_model_reports_have_both_sizes():
    torch.manual_seed(0)
    for coding in ("fixed", "rans"):
        report = codecllm.compress_model_weights(Tied(), coding=coding)
        assert set(report.codings) == set(report.memory_codings) == {coding}
        assert report.memory_bits_per_weight > report.bits_per_weight
        assert any(line.startswith(f"in memory {coding}: ") for line in report.lines())
        data = report.to_dict()
        assert data["memory_codings"] == report.memory_codings
        assert codecllm.CompressionReport.from_dict(data) == report


@BOTH
def test_old_streams_are_freed_on_the_way(before, after):
    model, _ = compressed(before)
    for p in model.parameters():
        p.data = p.data.clone()
    old = [weakref.ref(s.untyped_storage()) for s in model.blocks[0]["q_proj"].streams]
    addresses = [s.data_ptr() for s in model.blocks[0]["q_proj"].streams[:1]]
    codecllm.set_coding(model, after)
    gc.collect()
    assert addresses != [s.data_ptr() for s in model.blocks[0]["q_proj"].streams[:1]]
    assert all(ref() is None for ref in old)


def test_streams_without_memory_keep_their_coding():
    model, _ = compressed("rans")
    away = model.blocks[0]["q_proj"]
    for name in STREAM_NAMES:
        away._parameters[name] = nn.Parameter(
            away._parameters[name].to("meta"), requires_grad=False
        )
    report = codecllm.set_coding(model, "fixed")
    kept = next(x for x in report.layers if x.name == "blocks.0.q_proj")
    assert (kept.after, kept.bytes_before) == ("rans", kept.bytes_after)
    assert "not in memory" in kept.reason
    assert model.head.coding == "fixed"


def test_damaged_streams_are_an_error_that_names_the_module():
    model, _ = compressed("rans")
    model.blocks[1]["q_proj"].streams[0].data[200:1000] = 255
    with pytest.raises(codecllm.CorruptStreamError, match=r"^blocks\.1\.q_proj\.weight: "):
        codecllm.set_coding(model, "fixed")


@BOTH
def test_under_inference_mode_streams_stay_normal_tensors(before, after):
    model, _ = compressed(before)
    with torch.inference_mode():
        codecllm.set_coding(model, after)
    assert not any(p.is_inference() for p in model.parameters())
    x = torch.randn(2, 64, dtype=torch.bfloat16, requires_grad=True)
    model.blocks[0]["q_proj"](x).sum().backward()
    assert x.grad is not None


@BOTH
def test_copies_pickles_and_state_dicts_afterwards(before, after, ids):
    model, expected = compressed(before)
    codecllm.set_coding(model, after)
    y = model(ids)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    others = [copy.deepcopy(model), torch.load(file, weights_only=False)]
    fresh, _ = compressed(before, seed=1)
    fresh.load_state_dict(model.state_dict())
    for other in (*others, fresh):
        assert set(codings(other).values()) == {after}
        assert_weights(other, expected)
        assert torch.equal(other(ids), y)
    face = model.head.weight
    assert isinstance(face, CodedWeight) and face.coded.coding == after
    assert torch.equal(pickle.loads(pickle.dumps(face)).dense(), face.dense())


@BOTH
def test_a_face_from_before_still_has_the_weight(before, after):
    model, expected = compressed(before)
    face = model.head.weight
    codecllm.set_coding(model, after)
    assert torch.equal(face.dense(), expected["embed.weight"])
    assert model.head.weight is not face


@BOTH
def test_compiled_code_goes_on(before, after, ids):
    model, _ = compressed(before, exact=True)
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    y = run(ids)
    codecllm.set_coding(model, after)
    assert torch.equal(run(ids), y)


def test_a_converted_module_is_exported():
    module = CompressedLinear(nn.Linear(64, 48, dtype=torch.bfloat16), coding="rans")
    codecllm.set_coding(module, "fixed")
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    program = torch.export.export(module, (x,))
    assert torch.equal(program.module()(x), module(x))


def test_gradients_are_those_of_the_dense_layer():
    dense = nn.Linear(64, 48, dtype=torch.bfloat16)
    module = CompressedLinear(dense, coding="fixed", exact=True)
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    grads = []
    for layer in (dense, module):
        y = x.clone().requires_grad_()
        layer(y).square().sum().backward()
        grads.append(y.grad)
    assert torch.equal(*grads)


@BOTH
def test_a_saved_model_holds_what_is_in_memory(before, after, tmp_path):
    model, expected = compressed(before)
    codecllm.set_coding(model, after)
    codecllm.save_file(model, tmp_path / "m.safetensors")
    torch.manual_seed(3)
    loaded = codecllm.load_file(Tied(), tmp_path / "m.safetensors")
    assert set(codings(loaded).values()) == {after}
    assert_weights(loaded, expected)


def test_forwards_in_other_threads_go_on():
    model = nn.Sequential(nn.Linear(192, 64, bias=False)).bfloat16()
    weight = model[0].weight.detach().clone()
    codecllm.compress_model_weights(model, coding="fixed", exact=True)
    x = torch.randn(2, 192).bfloat16()
    expected = nn.functional.linear(x, weight)
    done = threading.Event()

    def forwards():
        while not done.is_set():
            assert torch.equal(model(x), expected)
            assert torch.equal(nn.functional.linear(x, model[0].weight), expected)
        return True

    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(forwards) for _ in range(2)]
        try:
            for coding in ("rans", "fixed") * 40:
                codecllm.set_coding(model, coding)
        finally:
            done.set()
        assert all(future.result() for future in running)
