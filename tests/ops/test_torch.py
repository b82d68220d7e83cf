"""The ops in PyTorch: opcheck, autograd, compile, export, fakes, FLOPs, autocast."""

from __future__ import annotations

import gc
import shutil

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck
from torch.nn.functional import linear
from torch.utils.flop_counter import FlopCounterMode

import codecllm_ops as ops
from assertions import UNIT, assert_same_words
from cases import every_format, random_words, to_tensor, weights
from codecllm_ops import CodedMatrix
from codecllm_ops.codec.operand import Operand
from codecllm_ops.format import FORMATS

BF16 = FORMATS["bf16"]
codecllm = torch.ops.codecllm


def coded_int8() -> CodedMatrix:
    q, scale = ops.quantize_int8(weights(33, 64, BF16))
    return ops.encode(q, scale=scale, tile_cols=32, allow_stored=False)


def coded_fixed() -> CodedMatrix:
    """With two listed weights."""
    w = weights(33, 64, BF16)
    w[3, 5], w[32, 63] = 2.0**20, 2.0**-40
    return ops.encode(w, tile_cols=32, allow_stored=False, coding="fixed")


def matrices() -> dict[str, CodedMatrix]:
    return {name: m.prepare() for name, m in _matrices().items()}


def _matrices() -> dict[str, CodedMatrix]:
    bf16 = ops.encode(weights(33, 64, BF16), tile_cols=32, allow_stored=False)
    return {
        "bf16": bf16,
        "left": ops.encode(weights(33, 64, BF16), predictor="left", allow_stored=False),
        "int8": coded_int8(),
        "stored": ops.encode(to_tensor(random_words(33, 64, FORMATS["int8"]), FORMATS["int8"])),
        "two segments": CodedMatrix.concat_rows([bf16, bf16]),
        "fixed": coded_fixed(),
        "fixed, two segments": CodedMatrix.concat_rows([bf16, bf16]).to("fixed"),
    }


MATRICES = matrices()
every_matrix = pytest.mark.parametrize("name", MATRICES)


# ---- opcheck ------------------------------------------------------------------------------------


@every_matrix
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_opcheck_decode(name, dtype):
    m = MATRICES[name]
    opcheck(codecllm.decode.default, tuple(m.operand), {"dtype": dtype})


@every_matrix
def test_opcheck_decode_rows(name):
    m = MATRICES[name]
    for ids in (torch.tensor([[1, 0], [32, 5]]), torch.tensor(3, dtype=torch.int32)):
        opcheck(codecllm.decode_rows.default, (ids, *m.operand), {"dtype": torch.bfloat16})


@every_matrix
@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 64), (0, 64)], ids=str)
def test_opcheck_decode_linear(name, shape):
    m = MATRICES[name]
    x = torch.randn(shape, requires_grad=True)
    bias = torch.randn(m.shape[0], requires_grad=True)
    opcheck(codecllm.decode_linear.default, (x, *m.operand, bias))
    opcheck(codecllm.decode_linear.default, (x.detach().bfloat16(), *m.operand))


def test_opcheck_encode():
    opcheck(codecllm.encode.default, (weights(33, 64, BF16),), {"allow_stored": False})
    q, scale = ops.quantize_int8(weights(33, 64, BF16))
    opcheck(codecllm.encode.default, (q, scale), {"tile_cols": 32, "predictor": "auto"})
    opcheck(codecllm.encode.default, (weights(33, 64, BF16),), {"coding": "fixed"})


# ---- autograd -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 64)], ids=str)
@every_matrix
def test_gradients_are_those_of_the_dense_layer(name, shape, dtype):
    m = MATRICES[name]
    w = ops.decode(m, dtype)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    bias = torch.randn(m.shape[0], generator=generator).to(dtype).requires_grad_()
    upstream = torch.randn(*shape[:-1], m.shape[0], generator=generator).to(dtype)
    found = torch.autograd.grad(ops.decode_linear(x, m, bias), (x, bias), upstream)
    expected = torch.autograd.grad(linear(x, w, bias), (x, bias), upstream)
    flat = upstream.reshape(-1, m.shape[0]).double().abs()
    magnitudes = (flat @ w.double().abs()).reshape(shape), flat.sum(0)
    n = 2 * m.shape[0] * UNIT[torch.float32]
    for g, e, magnitude in zip(found, expected, magnitudes, strict=True):
        assert g.dtype == dtype and g.shape == e.shape
        allowed = (2 * n + 2 * UNIT[dtype]) * magnitude  # both are sums and round once
        assert ((g.double() - e.double()).abs() <= allowed).all()
        assert g.abs().max() > 0


def test_gradcheck_in_small_integers():
    """Small integers are exact in float32: the gradient is a row of the weight, bit for bit."""
    w = torch.randint(-8, 8, (20, 32), generator=torch.Generator().manual_seed(0)).bfloat16()
    m = ops.encode(w, tile_cols=16, allow_stored=False)
    x = torch.ones(32, requires_grad=True)
    for row in (0, 7, 19):
        (grad,) = torch.autograd.grad(ops.decode_linear(x, m)[row], x)
        assert torch.equal(grad, w[row].float())


def test_only_asked_gradients_are_computed():
    m = MATRICES["bf16"]
    x, bias = torch.randn(2, 64), torch.randn(33, requires_grad=True)
    y = ops.decode_linear(x, m, bias)
    y.sum().backward()
    assert torch.equal(bias.grad, torch.full((33,), 2.0)) and x.grad is None
    assert not ops.decode_linear(x, m).requires_grad


def test_nothing_dense_is_saved_for_backward():
    m = MATRICES["bf16"]
    saved = []
    x, bias = torch.randn(5, 64, requires_grad=True), torch.randn(33, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = ops.decode_linear(x, m, bias)
    streams = {t.data_ptr() for t in (m.stream, m.raw, m.index, m.table)}
    assert saved and {t.data_ptr() for t in saved} <= streams
    y.sum().backward()
    assert x.grad is not None


def test_no_dense_weight_lives_between_forward_and_backward():
    m = MATRICES["left"]

    def dense_weights() -> int:
        tensors = (t for t in gc.get_objects() if type(t) is torch.Tensor)
        return sum(t.shape == m.shape for t in tensors)

    x = torch.randn(5, 64, requires_grad=True)
    gc.collect()
    before = dense_weights()
    y = ops.decode_linear(x, m)
    assert dense_weights() == before
    kept = ops.decode(m)
    assert dense_weights() == before + 1 and kept.shape == m.shape
    y.sum().backward()
    assert dense_weights() == before + 1


def test_second_backward_decodes_again():
    m = MATRICES["bf16"]
    x = torch.randn(2, 64, requires_grad=True)
    y = ops.decode_linear(x, m)
    (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(first, second)


# ---- forward mode, torch.func -------------------------------------------------------------------


TRANSFORMS = {
    "grad": lambda f: lambda x, b: torch.func.grad(lambda *a: f(*a).sum(), (0, 1))(x, b),
    "jacrev": lambda f: torch.func.jacrev(f, (0, 1)),
    "jacfwd": lambda f: torch.func.jacfwd(f, (0, 1)),
    "hessian": lambda f: torch.func.hessian(lambda x, b: f(x, b).square().sum()),
    "jvp": lambda f: lambda x, b: torch.func.jvp(f, (x, b), (x.cos(), b.cos())),
    "jvp of x alone": lambda f: lambda x, b: torch.func.jvp(lambda x: f(x, b), (x,), (x.cos(),)),
    "jvp of the bias alone": lambda f: (
        lambda x, b: torch.func.jvp(lambda b: f(x, b), (b,), (b.cos(),))
    ),
    "jvp of grad": lambda f: (
        lambda x, b: torch.func.jvp(
            torch.func.grad(lambda x: f(x, b).square().sum()), (x,), (x.cos(),)
        )
    ),
    "grad of grad": lambda f: torch.func.grad(
        lambda x, b: torch.func.grad(lambda x: f(x, b).pow(3).sum())(x).square().sum()
    ),
    "vmap": lambda f: torch.func.vmap(f, (0, None)),
    "vmap along another dimension": lambda f: lambda x, b: torch.func.vmap(f, (1, None))(x.mT, b),
    "vmap over x and bias": lambda f: lambda x, b: torch.func.vmap(f)(x, b + x[:, :1]),
    "vmap over the bias": lambda f: lambda x, b: torch.func.vmap(f, (None, 0))(x, b + x[:, :1]),
    "vmap of vmap": lambda f: (
        lambda x, b: torch.func.vmap(torch.func.vmap(f, (0, None)), (0, None))(x[:, None], b)
    ),
    "vmap of grad": lambda f: torch.func.vmap(
        torch.func.grad(lambda x, b: f(x, b).square().sum(), (0, 1)), (0, None)
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@every_matrix
def test_transforms_of_torch_func_equal_those_of_the_dense_layer(name, transform):
    m, fresh = MATRICES[name], CodedMatrix(*MATRICES[name].tensors())  # tables not built yet
    w = ops.decode(m, torch.float64)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 64, generator=generator)
    bias = torch.randn(m.shape[0], generator=generator)
    found = TRANSFORMS[transform](lambda x, b: ops.decode_linear(x, fresh, b))(x, bias)
    dense = TRANSFORMS[transform](lambda x, b: linear(x, w, b))(x.double(), bias.double())
    found, expected = torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(dense)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e.float(), rtol=1e-4, atol=1e-4)
    # What the matrix keeps serves calls outside the transform.
    assert torch.equal(ops.decode_linear(x, fresh), ops.decode_linear(x, m))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["int8", "fixed"])
def test_forward_mode_without_torch_func(name):
    m = MATRICES[name]
    x, tangent = torch.randn(2, 3, 64)
    with torch.autograd.forward_ad.dual_level():
        y = ops.decode_linear(torch.autograd.forward_ad.make_dual(x, tangent), m)
        primal, found = torch.autograd.forward_ad.unpack_dual(y)
    assert torch.equal(primal, ops.decode_linear(x, m))
    assert torch.equal(found, ops.decode_linear(tangent, m))


def test_vmap_of_lookups():
    m = MATRICES["int8"]
    ids = torch.tensor([[1, 0], [32, 5], [7, 7]])
    for dim in (0, 1):
        found = torch.func.vmap(lambda i: ops.decode_rows(i, m), dim)(ids)
        assert torch.equal(found, ops.decode_rows(ids.movedim(dim, 0), m))


def test_vmap_over_matrices_is_refused():
    m = MATRICES["bf16"]
    streams = [torch.stack([t, t]) for t in m.operand.tensors[:4]]
    with pytest.raises(NotImplementedError, match=r"decode_linear: torch.func.vmap over the coded"):
        torch.func.vmap(
            lambda *s: codecllm.decode_linear(torch.ones(64), *s, None, *m.operand[5:])
        )(*streams)


def test_a_table_built_in_inference_mode_serves_training():
    m = CodedMatrix(*MATRICES["int8"].tensors())
    with torch.inference_mode():
        ops.decode_linear(torch.randn(2, 64), m)
    x = torch.randn(2, 64, requires_grad=True)
    ops.decode_linear(x, m).sum().backward()
    assert x.grad is not None


# ---- compile, export ----------------------------------------------------------------------------


class Layer(torch.nn.Module):
    def __init__(self, m: CodedMatrix, bias: bool = True):
        super().__init__()
        self.m = m
        for name, tensor in zip(Operand._fields, m.operand.tensors, strict=False):
            self.register_buffer(name, tensor)
        self.bias = torch.nn.Parameter(torch.linspace(-1, 1, m.shape[0])) if bias else None

    def forward(self, x):
        coded = self.stream, self.raw, self.index, self.table, self.scale
        y = codecllm.decode_linear(x, *coded, *self.m.operand[5:], self.bias)
        return torch.relu(y) * 2


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [False, True])
@every_matrix
def test_compiled_forward_and_backward_equal_eager(name, dynamic):
    layer = Layer(MATRICES[name])
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((3, 64), (5, 64), (2, 7, 64)):
        x = torch.randn(shape, requires_grad=True)
        expected, y = layer(x), compiled(x)
        assert torch.equal(y, expected)
        upstream = torch.randn_like(y)
        inputs = (x, layer.bias)
        for g, e in zip(
            torch.autograd.grad(y, inputs, upstream),
            torch.autograd.grad(expected, inputs, upstream),
            strict=True,
        ):
            torch.testing.assert_close(g, e)


@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["int8", "fixed"])
def test_inductor_runs_it_between_its_own_kernels(name):
    layer = Layer(MATRICES[name])
    x = torch.randn(3, 64, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    found, x.grad = x.grad, None
    layer(x).sum().backward()
    torch.testing.assert_close(found, x.grad)


def test_dynamic_shapes_compile_once():
    layer = Layer(MATRICES["bf16"])
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for m in (2, 3, 40, 300):
            x = torch.randn(m, 64)
            assert torch.equal(compiled(x), layer(x))
    assert len(graphs) == 1


@pytest.mark.parametrize("make", [coded_int8, coded_fixed])
def test_functions_on_a_coded_matrix_compile(make):
    m = make()  # fresh: nothing has used it before the compiler

    def call(x, ids):
        rows = ops.decode_rows(ids, m, torch.float32)
        return ops.decode_linear(x + rows, m), ops.decode(m, torch.float32)

    args = torch.randn(3, 64), torch.tensor([0, 5, 32])
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    for found, expected in zip(compiled(*args), call(*args), strict=True):
        assert torch.equal(found, expected)


def test_unprepared_matrix_tells_the_compiler_what_to_call():
    m, x = CodedMatrix(*coded_int8().tensors()), torch.randn(3, 64)
    compiled = torch.compile(lambda x: ops.decode_linear(x, m), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"call prepare\(\)"):
        compiled(x)
    moved = m.prepare().to("cpu")
    assert moved.prepared
    assert torch.equal(compiled(x), ops.decode_linear(x, moved))


@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap"])
def test_transforms_compile(transform):
    m, x, bias = MATRICES["int8"], torch.randn(3, 64), torch.randn(33)
    call = TRANSFORMS[transform](lambda x, b: ops.decode_linear(x, m, b))
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, bias), call(x, bias))


@pytest.mark.parametrize("name", ["int8", "fixed"])
@pytest.mark.parametrize("strict", [False, True])
def test_export_with_a_dynamic_batch(strict, name):
    layer = Layer(MATRICES[name], bias=False)
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(
        layer, (torch.randn(3, 64),), dynamic_shapes={"x": {0: batch}}, strict=strict
    )
    targets = [n.target for n in program.graph.nodes if n.op == "call_function"]
    assert codecllm.decode_linear.default in targets
    for m in (2, 5, 200):
        x = torch.randn(m, 64)
        assert torch.equal(program.module()(x), layer(x))


# ---- fakes, FLOPs, autocast ---------------------------------------------------------------------


@every_format
def test_fake_results_have_the_real_shape_and_dtype(fmt):
    m = ops.encode(weights(33, 64, fmt), tile_cols=32, allow_stored=False)
    args, shape = m.operand.tensors, m.operand[5:]
    x, ids = torch.randn(2, 3, 64).bfloat16(), torch.tensor([[1, 2]])
    calls = (
        lambda a, x, ids: codecllm.decode(*a, *shape),
        lambda a, x, ids: codecllm.decode(*a, *shape, dtype=torch.float16),
        lambda a, x, ids: codecllm.decode_rows(ids, *a, *shape),
        lambda a, x, ids: codecllm.decode_linear(x, *a, *shape),
        lambda a, x, ids: codecllm.decode_linear(x[0, 0], *a, *shape),
    )
    with FakeTensorMode() as mode:
        fake = [None if t is None else mode.from_tensor(t) for t in args]
        fakes = [call(fake, mode.from_tensor(x), mode.from_tensor(ids)) for call in calls]
    for f, call in zip(fakes, calls, strict=True):
        real = call(args, x, ids)
        assert (f.shape, f.dtype, f.stride()) == (real.shape, real.dtype, real.stride())


def test_fake_refuses_what_the_kernel_refuses():
    m = MATRICES["bf16"]
    with FakeTensorMode() as mode:
        fake = [None if t is None else mode.from_tensor(t) for t in m.operand.tensors]
        with pytest.raises(RuntimeError, match="decode_linear"):
            codecllm.decode_linear(torch.empty(2, 63), *fake, *m.operand[5:])


def test_meta_tensors_flow_through():
    m = MATRICES["bf16"].to("meta")
    shape = 33, 64, MATRICES["bf16"].layout
    table = torch.empty(1, 2056, dtype=torch.int32, device="meta")
    coded = Operand(m.stream, m.raw, m.index.view(-1, 3), table, None, *shape)
    y = codecllm.decode_linear(torch.empty(2, 64, device="meta"), *coded)
    assert y.device.type == "meta" and y.shape == (2, 33)


def test_flops_are_those_of_the_dense_layer():
    m = MATRICES["bf16"]
    w = ops.decode(m, torch.float32)
    for shape in ((64,), (3, 64), (2, 5, 64)):
        x = torch.randn(shape)
        with FlopCounterMode(display=False) as coded:
            ops.decode_linear(x, m)
        with FlopCounterMode(display=False) as dense:
            linear(x.reshape(-1, 64), w)
        assert coded.get_total_flops() == dense.get_total_flops() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_like_linear(dtype):
    m = MATRICES["int8"]
    x, bias = torch.randn(2, 64, requires_grad=True), torch.randn(33)
    with torch.autocast("cpu", dtype=dtype):
        y = ops.decode_linear(x, m, bias)
        assert y.dtype == linear(x, torch.ones(33, 64), bias).dtype == dtype
    assert_same_words(y, ops.decode_linear(x.to(dtype), m, bias.to(dtype)))
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32 and x.grad.abs().max() > 0
