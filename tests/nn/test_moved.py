"""Streams that others move: what a forward does then, and what it leaves alone."""

from __future__ import annotations

import copy
import functools
import gc
import weakref

import pytest
import torch
from torch import nn

import codecllm
from codecllm.nn import CodedModule, CompressedLinear, coded_form
from codecllm.nn import module as module_file
from codecllm.nn import streams as streams_file
from codecllm.nn.streams import STREAM_NAMES
from codecllm_ops.format import Head
from model_cases import Tied

X = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))
    codecllm.compress_model_weights(model)
    return model


def by_parameters(module):
    """As accelerate."""
    for name, stream in zip(STREAM_NAMES, module.streams, strict=True):
        module._parameters[name] = type(stream)(stream.data.clone(), requires_grad=False)


def by_setattr(module):
    """As FSDP2 and load_state_dict(assign=True)."""
    for name, stream in zip(STREAM_NAMES, module.streams, strict=True):
        setattr(module, name, nn.Parameter(stream.data.clone(), requires_grad=False))


def by_data(module):
    """As diffusers' group offloading, and streamers with slots of their own."""
    for stream in module.streams:
        stream.data = stream.data.clone()


MOVES = [by_parameters, by_setattr, by_data]


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Streams count as far away. Returns what a forward must not do there."""
    done = []

    def counted(name, function):
        monkeypatch.setattr(module_file, name, lambda *args: done.append(name) or function(*args))

    for file in (module_file, streams_file):
        monkeypatch.setattr(file, "on_host", lambda t: False)
    for name in ("checksum", "parse_head", "_without_streams"):
        counted(name, getattr(module_file, name))
    return done


@pytest.mark.parametrize("move", MOVES)
def test_a_forward_on_a_gpu_reads_and_builds_nothing(as_on_a_gpu, monkeypatch, move):
    module = CompressedLinear(nn.Linear(64, 48))
    expected = module(X)
    table = module.weight_table
    as_on_a_gpu.clear()
    for _ in range(3):
        move(module)
        with monkeypatch.context() as patch:
            for name in ("clone", "tolist", "item", "cpu", "numpy", "contiguous"):
                patch.setattr(torch.Tensor, name, lambda *a, n=name, **k: pytest.fail(n))
            found = module(X)
        assert torch.equal(found, expected)
    assert not as_on_a_gpu and module.weight_table is table


def test_another_size_is_another_matrix_on_a_gpu_too(as_on_a_gpu):
    module = CompressedLinear(nn.Linear(64, 48, bias=False))
    dense = nn.Linear(64, 48, bias=False)
    with torch.no_grad():
        dense.weight.mul_(torch.logspace(-6, 0, 64))
    other = CompressedLinear(dense)
    for name, stream in zip(STREAM_NAMES, other.streams, strict=True):
        module._parameters[name] = stream
    assert torch.equal(module(X), other(X))


def test_unaligned_streams_are_moved_once(as_on_a_gpu):
    module = CompressedLinear(nn.Linear(64, 48))
    expected = module(X)
    for stream in module.streams:
        room = torch.empty(stream.nbytes + 16, dtype=torch.uint8)
        at = 4 - room.data_ptr() % 16 + 16
        place = room[at % 16 :][: stream.nbytes].view(stream.dtype)
        stream.data = place.copy_(stream.data)
    assert all(s.data_ptr() % 16 for s in module.streams)
    assert torch.equal(module(X), expected)
    before = [s.data_ptr() for s in module.streams]
    assert not any(p % 16 for p in before)
    module(X)
    assert [s.data_ptr() for s in module.streams] == before


def users(t):
    """How many tensors use this memory."""
    gc.collect()
    storage = t.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata)


@pytest.mark.parametrize("move", MOVES)
def test_memory_of_moved_streams_is_free(move):
    module = CompressedLinear(nn.Linear(64, 48))
    for _ in range(3):  # as loaded, then here and there
        module(X)
        before = [s.data for s in module.streams[:2]]
        alone = users(before[0].clone())
        move(module)
        module(X)
        assert [users(t) for t in before] == [alone, alone]


def test_the_index_may_move_alone():
    module = CompressedLinear(nn.Linear(64, 48))
    expected = module(X)
    before = module.weight_index.data
    module.weight_index.data = before.clone()
    before.zero_()
    assert torch.equal(module(X), expected)


def test_asking_for_the_weight_keeps_no_streams():
    module = CompressedLinear(nn.Linear(64, 48))
    by_parameters(module)
    gc.disable()
    try:
        module.weight + 0
        streams = [weakref.ref(s) for s in module.streams]
        by_parameters(module)
        assert not any(s() for s in streams)
    finally:
        gc.enable()


def test_compressing_in_inference_mode_leaves_gradients_possible():
    with torch.inference_mode():
        model = nn.Sequential(nn.Embedding(96, 64), nn.Linear(64, 48))
        codecllm.compress_model_weights(model)
        dense = codecllm.decompress_model(copy.deepcopy(model))
    x = X.clone().requires_grad_()
    model[1](x).sum().backward()
    assert x.grad is not None and not any(s.is_inference() for s in model[1].streams)
    dense[1].bias = None
    dense[1](X).sum().backward()
    assert dense[1].weight.grad is not None


# ---- accelerate ---------------------------------------------------------------------------------


def test_offloading_to_the_cpu():
    accelerate = pytest.importorskip("accelerate")
    expected = make()(X)
    model = accelerate.cpu_offload(make(), execution_device=torch.device("cpu"))
    for _ in range(2):
        assert torch.equal(model(X), expected)
        assert model[0].weight.is_meta and model[0].weight is model[0].streams[0]


def test_offloading_to_disk(tmp_path, monkeypatch):
    accelerate = pytest.importorskip("accelerate")
    expected, model = make()(X), make()
    memory = model[0].streams[1].data
    model = accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    monkeypatch.setattr(CodedModule, "rebuild", lambda self: pytest.fail("built again"))
    for _ in range(2):
        assert torch.equal(model(X), expected)
    assert users(memory) == users(memory.clone())
    assert torch.equal(copy.deepcopy(model)(X), expected)


def test_tied_modules_with_hooks():
    accelerate = pytest.importorskip("accelerate")
    model, ids = Tied(), torch.tensor([[1, 2, 95]])
    codecllm.compress_model_weights(model)
    expected = model(ids)
    devices = dict.fromkeys(("embed", "blocks", "head"), "cpu")
    model = accelerate.dispatch_model(model, devices, force_hooks=True)
    assert torch.equal(model(ids), expected)
    assert model.head.weight is model.embed.weight
    assert all(a is b for a, b in zip(model.head.streams, model.embed.streams, strict=True))


# ---- torch.distributed --------------------------------------------------------------------------


@pytest.fixture
def mesh():
    dist = pytest.importorskip("torch.distributed")
    if not dist.is_available():
        pytest.skip("no torch.distributed")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_fsdp2(mesh, monkeypatch):
    from torch.distributed.fsdp import fully_shard

    expected, model = make()(X), make()
    for layer in (model[0], model[2], model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    monkeypatch.setattr(CodedModule, "rebuild", lambda self: pytest.fail("built again"))
    for _ in range(3):
        assert torch.equal(model(X), expected)
    assert type(model[0].weight).__name__ == "DTensor"  # between forwards: sharded
    x = X.clone().requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None


def test_ddp(mesh):
    model = nn.parallel.DistributedDataParallel(make())
    assert torch.equal(model(X), make()(X))
    model(X.clone().requires_grad_()).sum().backward()
    assert model.module[0].bias.grad is not None


def test_fsdp1_is_refused(mesh):
    from torch.distributed.fsdp import FullyShardedDataParallel

    with pytest.raises(NotImplementedError, match="use fully_shard"):
        FullyShardedDataParallel(make(), device_id=torch.device("cpu"))


@pytest.mark.parametrize("style", ["ColwiseParallel", "RowwiseParallel"])
def test_tensor_parallelism_is_refused(mesh, style):
    from torch.distributed.tensor import parallel

    with pytest.raises(NotImplementedError, match="tensor parallel share"):
        parallel.parallelize_module(make(), mesh, {"0": getattr(parallel, style)()})


# ---- copies of forms ----------------------------------------------------------------------------


def test_a_head_is_parsed_once(monkeypatch):
    dense, parsed = nn.Linear(64, 48), []
    state = CompressedLinear(dense).state_dict()
    cached = functools.lru_cache(lambda b: parsed.append(1) or Head.parse(b))
    monkeypatch.setattr(streams_file, "_parse", cached)
    module = coded_form(dense, {n: state[n] for n in STREAM_NAMES}, torch.float32)
    module(X)
    codecllm.nn.sync_tables(module)
    copy.deepcopy(module)(X)
    assert len(parsed) == 1
