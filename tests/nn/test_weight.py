"""module.weight of a compressed module: a CodedWeight, which looks like the dense weight."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import codecllm
import codecllm_ops
from codecllm.nn import CodedModule, CompressedEmbedding, CompressedLinear, coded_form

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def linear(dtype=torch.float32, **options):
    torch.manual_seed(0)
    return nn.Linear(64, 48, dtype=dtype, **options)


def decodes(monkeypatch):
    """Counts dense copies."""
    count = []
    dense = codecllm.CodedWeight.dense
    monkeypatch.setattr(codecllm.CodedWeight, "dense", lambda self: count.append(1) or dense(self))
    return count


def test_it_says_what_the_dense_weight_says():
    dense = linear(torch.bfloat16)
    weight = CompressedLinear(dense).weight
    assert isinstance(weight, codecllm.CodedWeight) and isinstance(weight, nn.Parameter)
    assert weight.shape == (48, 64) == tuple(weight.size()) and weight.dim() == weight.ndim == 2
    assert weight.dtype == torch.bfloat16 and weight.device == dense.weight.device
    assert weight.numel() == 48 * 64 and weight.nbytes == dense.weight.nbytes and len(weight) == 48
    assert not weight.requires_grad and weight.is_floating_point() and not weight.is_meta
    assert "bits per weight" in repr(weight)


def test_tied_modules_have_one_weight():
    embedding = CompressedEmbedding(nn.Embedding(48, 64))
    head = CompressedLinear.from_streams(64, 48, embedding, dtype=torch.float32)
    assert head.weight is embedding.weight
    assert CompressedLinear(linear()).weight is not head.weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("exact", [True, False])
def test_products_decode_on_the_way(monkeypatch, dtype, exact):
    dense = linear(dtype)
    module = CompressedLinear(dense, exact=exact)
    weight, x = module.weight, torch.randn(2, 5, 64, dtype=dtype)
    copies = decodes(monkeypatch)
    ways = [
        (lambda w: F.linear(x, w), None),
        (lambda w: F.linear(x, w, dense.bias), None),
        (lambda w: x @ w.T, None),
        (lambda w: torch.matmul(x, w.t()), None),
        (lambda w: x.matmul(w.transpose(0, 1)), None),
        (lambda w: torch.mm(x[0], w.permute(1, 0)), None),
        (lambda w: x @ w.mT, None),
    ]
    for way, _ in ways:
        expected, found = way(dense.weight), way(weight)
        if exact:
            assert torch.equal(found, expected)
        tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype != torch.float32 else {}
        torch.testing.assert_close(found, expected, **tolerance)
    assert not copies


def test_rows_are_looked_up(monkeypatch):
    dense = nn.Embedding(48, 64)
    weight, ids = CompressedEmbedding(dense).weight, torch.tensor([[1, 47], [0, 1]])
    copies = decodes(monkeypatch)
    for rows in (
        F.embedding(ids, weight),
        F.embedding(ids, weight, padding_idx=1),
        torch.embedding(weight, ids),
        weight[ids],
    ):
        assert torch.equal(rows, dense.weight[ids])
    assert torch.equal(weight.index_select(0, ids[0]), dense.weight[ids[0]])
    assert not copies


def test_everything_else_gets_a_dense_copy_for_the_call(monkeypatch):
    dense = linear()
    weight, w = CompressedLinear(dense).weight, dense.weight.detach()
    copies, x = decodes(monkeypatch), torch.randn(48, 3)
    ways = [
        lambda w: w + 1,
        lambda w: w @ x[:, :1].expand(48, 64).T[:64],
        lambda w: w.T @ x,
        lambda w: torch.linalg.norm(w, dim=1),
        lambda w: w[3:5, 1],
        lambda w: torch.cat([w, w]),
        lambda w: w.clone(),
        lambda w: w.T.contiguous() * 2,
        lambda w: F.layer_norm(w, (64,)),
        lambda w: w.index_copy(0, torch.tensor([3]), torch.ones(1, 64)),
        lambda w: torch.zeros(48, 64).copy_(w),
    ]
    for number, way in enumerate(ways):
        copies.clear()
        found = way(weight)
        assert type(found) is torch.Tensor and copies, number
        assert torch.equal(found, way(w)), number


def test_dtypes_and_devices(monkeypatch):
    dense = linear(torch.bfloat16)
    weight = CompressedLinear(dense).weight
    copies = decodes(monkeypatch)
    for cast in (weight.to(torch.float32), weight.float(), weight.to(torch.ones(1))):
        assert isinstance(cast, codecllm.CodedWeight) and cast.dtype == torch.float32
        assert torch.equal(cast + 0, dense.weight.float())
    assert weight.to("cpu") is weight.cpu() is weight.to(torch.bfloat16) is weight
    assert len(copies) == 3  # of the sums
    # Two roundings, as the dense weight has them.
    twice = weight.half().float()
    assert type(twice) is torch.Tensor and torch.equal(twice, dense.weight.half().float())


def test_gradients_pass():
    dense = linear()
    module, x = CompressedLinear(dense), torch.randn(3, 64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    (x @ module.weight.T).square().sum().backward()
    (y @ dense.weight.detach().T).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


WRITES = {
    "in place": lambda w: w.add_(1),
    "operator": lambda w: w.__iadd__(1),
    "item": lambda w: w.__setitem__(0, 1.0),
    "data": lambda w: setattr(w, "data", torch.zeros(48, 64)),
    "write to data": lambda w: w.data.zero_(),
    "init": lambda w: nn.init.normal_(w),
    "out": lambda w: torch.add(torch.zeros(48, 64), 1, out=w),
    "foreach": lambda w: torch._foreach_add_([w], 1.0),
    "below": lambda w: torch.ops.aten.add_.Tensor(w, torch.ones(48, 64)),
    "max_norm": lambda w: F.embedding(torch.tensor([0]), w, max_norm=1.0),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writing_is_refused(write):
    module = CompressedLinear(linear())
    before = module.decode()
    with torch.no_grad(), pytest.raises(RuntimeError, match="a coded weight cannot be written to"):
        write(module.weight)
    assert torch.equal(module.decode(), before)


@pytest.mark.parametrize(
    "train",
    [
        lambda m: m.weight.requires_grad_(True),
        lambda m: setattr(m.weight, "requires_grad", True),
        lambda m: nn.Parameter(m.weight),
        lambda m: m.streams[0].requires_grad_(),
        lambda m: setattr(m.streams[0], "requires_grad", True),
    ],
)
def test_asking_one_weight_for_gradients_is_refused(train):
    with pytest.raises(ValueError, match="frozen"):
        train(CompressedLinear(linear()))


def test_asking_a_whole_model_for_gradients_passes_the_coded_weights():
    model = nn.Sequential(CompressedLinear(linear()), nn.Linear(48, 8))
    model.requires_grad_(False).requires_grad_(True)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"0.bias", "1.weight", "1.bias"}
    again = copy.deepcopy(pickle.loads(pickle.dumps(model))).requires_grad_(True)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == trained


def test_copies_and_pickles_stay_coded():
    dense = linear(torch.bfloat16)
    weight = CompressedLinear(dense, exact=True).weight
    for copied in (copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))):
        again = copied(weight)
        assert isinstance(again, codecllm.CodedWeight) and again is not weight
        assert again.execution is weight.execution
        assert torch.equal(again + 0, dense.weight)
        assert torch.equal(copied(weight.T) + 0, dense.weight.T)
    assert len(pickle.dumps(weight)) < dense.weight.nbytes


def test_a_parameter_is_found_by_name_and_ties():
    model = nn.ModuleDict(
        {"a": CompressedLinear(linear()), "b": CompressedLinear(nn.Linear(64, 48))}
    )
    assert model.get_parameter("a.weight") is model["a"].weight
    model["b"].weight = model.get_parameter("a.weight")
    assert all(x is y for x, y in zip(model["a"].streams, model["b"].streams, strict=True))
    x = torch.randn(2, 64)
    assert torch.equal(model["b"](x), F.linear(x, model["a"].weight, model["b"].bias))


def test_a_dense_layer_can_be_tied_to_it():
    embedding = CompressedEmbedding(nn.Embedding(48, 64))
    head = nn.Linear(64, 48, bias=False)
    head.weight = embedding.weight
    x = torch.randn(2, 64)
    torch.testing.assert_close(head(x), F.linear(x, embedding.decode()))


def test_what_does_not_fit_is_refused():
    module = CompressedLinear(linear())
    with pytest.raises(TypeError, match="is a coded stream, not"):
        module.weight = nn.Parameter(torch.zeros(48, 64))
    with pytest.raises(ValueError, match="cannot become weight"):
        module.weight = CompressedLinear(nn.Linear(48, 64)).weight


def test_made_a_stream_it_is_the_first():
    """accelerate makes a Parameter of the old one's class from `module.weight.to(device)`."""
    module = CompressedLinear(linear())
    stream = type(module.streams[0])(module.weight.to("cpu"), requires_grad=False)
    assert stream.data_ptr() == module.streams[0].data_ptr() and stream.dtype == torch.uint8


def test_on_meta_it_is_the_parameter():
    module = CompressedLinear(linear())
    size = module.streams[0].shape
    assert module.weight.to("meta").shape == size  # what accelerate puts in the module's place
    module.to("meta")
    assert module.weight is module.streams[0] and module.weight.shape == size


@pytest.mark.parametrize("coded", DTYPES)
@pytest.mark.parametrize("now", DTYPES)
def test_dense_forms_follow_the_dtype(coded, now):
    """A cast after compressing is a cast of the dense weight."""
    dense = linear(coded)
    module = CompressedLinear(dense, exact=True).to(now)
    dense.to(now)
    assert module.weight.dtype == module.dense_weight().dtype == now
    assert torch.equal(module.dense_weight(), dense.weight)
    assert torch.equal(module.decompress().weight, dense.weight)
    x = torch.randn(2, 64, dtype=now)
    assert torch.equal(module(x), dense(x))
    assert torch.equal(F.linear(x, module.weight, module.bias), dense(x))


def test_other_dtypes_of_x_fail_as_on_a_dense_weight():
    weight = CompressedLinear(linear(torch.bfloat16)).weight
    with pytest.raises(RuntimeError, match="dtype"):
        F.linear(torch.ones(1, 64), weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.linear(torch.ones(1, 64), weight).dtype == torch.bfloat16


def test_of_a_matrix():
    weight = codecllm.CodedWeight(codecllm_ops.encode(linear().weight))
    assert torch.equal(weight + 0, linear().weight)
    module = CompressedLinear.from_streams(64, 48, weight, dtype=torch.float32)
    assert torch.equal(module.decode(), linear().weight)
    assert module.streams[0].data_ptr() == weight.streams[0].data_ptr()


class Product(nn.Module):
    def forward(self, x, weight):
        return x @ weight.T


def test_as_an_input_of_compiled_code_it_says_no():
    inputs = torch.ones(1, 64), CompressedLinear(linear()).weight
    with pytest.raises(Exception, match="cannot take a CodedWeight as an input"):
        torch.compile(Product(), backend="eager")(*inputs)
    with pytest.raises(NotImplementedError, match="cannot take a CodedWeight as an input"):
        torch.export.export(Product(), inputs)


# ---- torch's own modules that use weights of others ---------------------------------------------


class OwnProduct(nn.Linear):
    """As Falcon's."""

    def forward(self, x):
        return x @ self.weight.T + self.bias


class ScaledEmbedding(nn.Embedding):
    """As Gemma's."""

    def forward(self, ids):
        return super().forward(ids) * torch.tensor(8.0).to(self.weight.dtype)


MODULES = {
    "attention": (lambda: nn.MultiheadAttention(64, 4, batch_first=True), 3),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), 2),
        1,
    ),
    "transformer": (lambda: nn.Transformer(64, 4, 1, 1, 128, batch_first=True), 2),
    "own product": (lambda: OwnProduct(64, 64), 1),
}


@pytest.mark.parametrize(("make", "inputs"), MODULES.values(), ids=MODULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_modules_that_use_weights_themselves(make, inputs, dtype):
    torch.manual_seed(0)
    dense = make().to(dtype).eval()
    model = nn.Sequential(copy.deepcopy(dense))
    report = codecllm.compress_model_weights(model, exact=True)
    assert not report.of("skipped") and any(isinstance(m, CodedModule) for m in model.modules())
    x = torch.randn(2, 7, 64, dtype=dtype)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one kernel for a layer, of dense weights
    try:
        with torch.no_grad():
            expected, found = dense(*[x] * inputs), model[0](*[x] * inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    for a, b in zip(flat(expected), flat(found), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():  # where the fast path is looked for
        torch.testing.assert_close(flat(model[0](*[x] * inputs))[0], flat(expected)[0])


def flat(out):
    return [out] if isinstance(out, torch.Tensor) else [t for t in out if t is not None]


def test_a_scaled_embedding_in_another_dtype():
    dense = ScaledEmbedding(48, 64, dtype=torch.bfloat16)
    model = nn.Sequential(copy.deepcopy(dense))
    codecllm.compress_model_weights(model)
    ids = torch.tensor([1, 5])
    assert torch.equal(model.half()(ids), dense.half()(ids))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)), "computed from"),
        (nn.LazyLinear(64), "UninitializedParameter"),
        (nn.Conv1d(4, 4, 3), "neither nn.Linear nor"),
        (nn.Embedding(64, 64, max_norm=1.0), "max_norm"),
    ],
)
def test_what_cannot_be_coded_is_named(module, reason):
    assert reason in codecllm.nn.obstacle(module)


def test_a_weight_with_companions_stays():
    module = nn.Linear(64, 64)
    module.weight_scale_inv = nn.Parameter(torch.ones(1))
    assert "weight_scale_inv" in codecllm.nn.obstacle(module)


def test_coded_forms_hold_any_kind_of_streams():
    dense = linear()
    coded = codecllm_ops.encode(dense.weight)
    for streams in (coded, codecllm.CodedWeight(coded), CompressedLinear(dense)):
        assert torch.equal(coded_form(dense, streams, torch.float32).decode(), dense.weight)
