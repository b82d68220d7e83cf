"""Streams that others replace: a forward notices, and builds tables for other matrices only."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from codecllm.nn import STREAM_NAMES, CompressedLinear, sync_tables
from module_cases import linear, streams_of


def test_new_streams_get_new_tables():
    a, b = linear(seed=1, bias=False), linear(seed=2, bias=False)
    module, other = CompressedLinear(a), CompressedLinear(b)
    for name in STREAM_NAMES:
        setattr(module, name, streams_of(other)[name])
    assert not module.ready
    x = torch.randn(1, 96, dtype=torch.bfloat16)
    assert torch.equal(module(x), other(x))


def by_parameters(module, streams):
    for name in STREAM_NAMES:
        module._parameters[name] = nn.Parameter(streams[name], requires_grad=False)


def by_data(module, streams):
    for name in STREAM_NAMES:
        streams_of(module)[name].data = streams[name]


def by_copy(module, streams):
    for name in STREAM_NAMES:
        streams_of(module)[name].copy_(streams[name])


def by_copy_behind_autograd(module, streams):
    for name in STREAM_NAMES:
        streams_of(module)[name].data.copy_(streams[name])


@pytest.mark.parametrize("replace", [by_parameters, by_data, by_copy, by_copy_behind_autograd])
@pytest.mark.parametrize("inference", [False, True])
def test_replaced_streams_are_noticed(replace, inference):
    # The same integers with other scales: streams of equal sizes whose tables differ.
    dense = linear(bias=False)
    other = copy.deepcopy(dense)
    with torch.no_grad():
        other.weight.mul_(2.0)
    with torch.inference_mode(inference):
        module = CompressedLinear(dense, format="int8")
        target = CompressedLinear(other, format="int8")
        x = torch.randn(1, 96, dtype=torch.bfloat16)
        module(x)
        replace(module, {n: t.detach().clone() for n, t in streams_of(target).items()})
        assert torch.equal(module(x), target(x))
        assert torch.equal(module.decode(torch.float32), target.decode(torch.float32))


def test_freed_memory_that_comes_back_is_no_disguise():
    """Tensors take the address of the one freed last: addresses alone would not tell."""
    modules = [CompressedLinear(linear(seed=seed, bias=False)) for seed in range(3)]
    streams = [{n: t.detach().clone() for n, t in streams_of(m).items()} for m in modules]
    module, x = modules[0], torch.randn(1, 96, dtype=torch.bfloat16)
    for i in (1, 2, 0, 2, 1):
        by_data(module, {n: t.clone() for n, t in streams[i].items()})
        by_data(module, {n: t.clone() for n, t in streams[i].items()})
        fresh = CompressedLinear.from_streams(96, 80, streams[i])
        assert torch.equal(module(x), fresh(x))


def test_tables_are_not_built_again_for_the_same_streams(monkeypatch):
    """Offloading puts new tensors with equal bytes into the module before every forward."""
    module = CompressedLinear(linear())
    x = torch.randn(1, 96, dtype=torch.bfloat16)
    streams = {n: t.detach().clone() for n, t in streams_of(module).items()}
    monkeypatch.setattr(module, "rebuild", lambda: pytest.fail("built again"))
    for replace in (by_parameters, by_data, by_copy, by_copy_behind_autograd):
        replace(module, {n: t.clone() for n, t in streams.items()})
        module(x)
    module.to(torch.float16)(x)


def test_functional_call_uses_the_tables_of_its_streams():
    a, b = (CompressedLinear(linear(seed=seed, bias=False)) for seed in (1, 2))
    x = torch.randn(1, 96, dtype=torch.bfloat16)
    streams = {n: t.detach() for n, t in streams_of(b).items()}
    before, expected = a(x), b(x)
    assert torch.equal(torch.func.functional_call(a, streams, (x,)), expected)
    assert torch.equal(a(x), before)


def test_sync_tables_does_not_ask_whether_it_is_needed():
    module = CompressedLinear(linear())
    x = torch.randn(1, 96, dtype=torch.bfloat16)
    expected = module(x)
    module.weight_table.zero_()  # as if nothing had been noticed
    sync_tables(module)
    assert torch.equal(module(x), expected)


def test_transforms_and_fakes_pass_the_look_at_the_head():
    module = CompressedLinear(linear(dtype=torch.float32))
    x = torch.randn(3, 96)
    w = module.decode()
    copied = copy.deepcopy(module)  # has not looked at its head yet
    (_, tangent) = torch.func.jvp(copied, (x,), (x.cos(),))
    torch.testing.assert_close(tangent, x.cos() @ w.T, rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.func.vmap(copy.deepcopy(module))(x), module(x))
    program = torch.export.export(copy.deepcopy(module), (x,), strict=False)
    assert torch.equal(program.module()(x), module(x))
