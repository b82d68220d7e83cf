"""torch.compile and torch.export of compressed modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from codecllm.nn import STREAM_NAMES, CompressedEmbedding, CompressedLinear, coded_form


class Block(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.up, self.down = make(64, 96), make(96, 64)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


def coded(exact):
    def make(cols, rows):
        dense = nn.Linear(cols, rows)
        with torch.no_grad():  # rows of different spread: lane lengths of 5 and 6 bits
            dense.weight.mul_(torch.rand(rows, 1) ** torch.randint(1, 9, (1,)))
        return CompressedLinear(dense, exact=exact)

    return make


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_equal_layers_are_one_graph(exact, grad):
    torch.manual_seed(0)
    blocks = [Block(coded(exact)) for _ in range(24)]
    assert len({b.up.streams[0].numel() for b in blocks}) > 8
    assert len({b.up.operand()[2].shape[1] for b in blocks}) > 1
    counter = CompileCounterWithBackend("aot_eager")
    with torch.set_grad_enabled(grad):
        x = y = torch.randn(5, 64, requires_grad=grad)
        for block in blocks:
            x, y = torch.compile(block, fullgraph=True, backend=counter)(x), block(y)
    assert torch.equal(x, y)
    assert counter.frame_count == 1


def test_an_empty_list_is_one_more_graph():
    layers = [nn.Linear(64, 48, bias=False).bfloat16() for _ in range(6)]
    for n, dense in enumerate(layers):
        dense.weight.data = dense.weight.data.abs().clamp(min=0.01)
        dense.weight.data.view(-1)[: 10 * (n % 3)] = 1e-30
    counter, x = CompileCounterWithBackend("aot_eager"), torch.randn(2, 64).bfloat16()
    for dense in layers:
        module = CompressedLinear(dense, coding="fixed")
        compiled = torch.compile(module, fullgraph=True, backend=counter)
        assert torch.equal(compiled(x), module(x))
    assert counter.frame_count <= 2


def test_equal_embeddings_are_one_graph():
    torch.manual_seed(0)
    counter, ids = CompileCounterWithBackend("aot_eager"), torch.tensor([3, 1])
    for _ in range(12):
        module = CompressedEmbedding(nn.Embedding(64, 48))
        compiled = torch.compile(module, fullgraph=True, backend=counter)
        assert torch.equal(compiled(ids), module(ids))
    assert counter.frame_count == 1


def test_new_streams_are_seen_by_compiled_code():
    """After a load or a move; other ways need sync_tables()."""
    a, b = (CompressedLinear(nn.Linear(64, 48)) for _ in range(2))
    compiled = torch.compile(a, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 64)
    assert torch.equal(compiled(x), a(x))
    a.load_state_dict(b.state_dict())
    assert torch.equal(compiled(x), b(x))


def test_code_that_reads_the_weight_compiles():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(64, 4, batch_first=True).eval()
    projection = attention.out_proj
    attention.out_proj = coded_form(projection, CompressedLinear(projection), torch.float32)
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        expected = attention(x, x, x)[0]
        compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, x, x)[0], expected)
        exported = torch.export.export(attention, (x, x, x))
        torch.testing.assert_close(exported.module()(x, x, x)[0], expected)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_programs_hold_the_streams_once_and_by_name(strict):
    module, x = CompressedLinear(nn.Linear(64, 48)), torch.randn(2, 64)
    program = torch.export.export(module, (x,), strict=strict)
    assert torch.equal(program.module()(x), module(x))
    used = {spec.target for spec in program.graph_signature.input_specs if spec.target}
    assert set(STREAM_NAMES[:3]) <= used
    assert set(program.constants) <= {"weight_table", "dtype_like"}
