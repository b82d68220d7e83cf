"""CompressedLinear and CompressedEmbedding behave as the modules they replace."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import codecllm
import codecllm_ops
from codecllm.nn import (
    STREAM_DTYPES,
    STREAM_NAMES,
    CompressedEmbedding,
    CompressedLinear,
    checksums_compared,
    coded_form,
    dense_form,
)
from module_cases import assert_bits_equal, linear, streams_of

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_come_back_bit_by_bit(dtype):
    dense = linear(dtype=dtype)
    assert_bits_equal(CompressedLinear(dense).decompress().weight, dense.weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_exact_output_equals_the_dense_layer(dtype, bias):
    dense = linear(bias=bias, dtype=dtype)
    x = torch.randn(2, 3, 96, dtype=dtype)
    assert_bits_equal(CompressedLinear(dense, exact=True)(x), dense(x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_output_differs_by_summation_order_only(dtype):
    dense = linear(dtype=dtype)
    x = torch.randn(5, 96, dtype=dtype)
    out = CompressedLinear(dense)(x)
    wide = F.linear(x.double(), dense.weight.double(), dense.bias.double())
    # fp32 accumulation of K products in any order, then one rounding to the output's dtype.
    magnitude = F.linear(x.double().abs(), dense.weight.double().abs(), dense.bias.double().abs())
    bound = 96 * 2**-24 * magnitude + torch.finfo(dtype).eps * wide.abs()
    assert out.dtype == dtype
    assert ((out.double() - wide).abs() <= bound).all()


def test_int8_reproduces_integer_times_scale():
    dense = linear(dtype=torch.float32)
    coded = CompressedLinear(dense, format="int8")
    error = (coded.decompress().weight - dense.weight).abs().amax(dim=1)
    assert (error <= dense.weight.abs().amax(dim=1) / 127 * 0.5001).all()
    assert coded.decode().dtype == torch.int8


def test_it_is_an_nn_linear_with_one_dimensional_streams():
    module = CompressedLinear(linear())
    assert isinstance(module, nn.Linear)
    assert (module.in_features, module.out_features) == (96, 80)
    for name, dtype in STREAM_DTYPES.items():
        stream = streams_of(module)[name]
        assert dict(module.named_parameters())[name] is stream
        assert isinstance(stream, nn.Parameter) and not stream.requires_grad
        assert stream.dtype == dtype and stream.dim() == 1
    assert set(module.state_dict()) == {*STREAM_NAMES, "bias"}


def test_the_original_weight_is_freed():
    dense = linear()
    dead = weakref.ref(dense.weight)
    module = CompressedLinear(dense)
    del dense
    gc.collect()
    assert dead() is None and module.bias is not None


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(),
        lambda m: m.float(),
        lambda m: m.to(torch.float16),
        lambda m: m.type(torch.float16),
        lambda m: m.double(),
    ],
)
@pytest.mark.parametrize("format", ["lossless", "int8"])
def test_casting_moves_the_bias_but_never_streams_or_scales(cast, format):
    dense = linear()
    module = CompressedLinear(dense, format=format)
    before = module.decode().clone()
    cast(module)
    assert [s.dtype for s in module.streams] == list(STREAM_DTYPES.values())
    assert module.weight_table.dtype == torch.int32
    assert module.weight_scale is None or module.weight_scale.dtype == torch.float32
    assert module.bias.dtype != torch.bfloat16
    assert torch.equal(module.decode(), before)


def test_embedding_output_follows_a_cast():
    module = CompressedEmbedding(nn.Embedding(64, 32))
    assert module.half()(torch.tensor([3])).dtype == torch.float16


def test_state_dict_of_another_size_loads():
    a, b = linear(seed=1), linear(seed=2)
    with torch.no_grad():
        b.weight.mul_(torch.logspace(-30, 0, 96).to(torch.bfloat16))
    source, target = CompressedLinear(a), CompressedLinear(b)
    assert source.streams[0].shape != target.streams[0].shape
    target.load_state_dict(source.state_dict())
    assert_bits_equal(target.decompress().weight, a.weight)
    target.load_state_dict(CompressedLinear(b).state_dict(), assign=True)
    assert_bits_equal(target.decompress().weight, b.weight)


def test_state_dict_of_another_matrix_is_refused():
    target = CompressedLinear(linear())
    with pytest.raises(ValueError, match="a matrix of"):
        target.load_state_dict(CompressedLinear(linear(rows=64)).state_dict())


def test_damaged_state_dict_is_refused_naming_the_field():
    module = CompressedLinear(linear())
    state = {k: v.clone() for k, v in module.state_dict().items()}
    state["weight_head"][8] ^= 1
    with pytest.raises(codecllm.CorruptStreamError, match=r"weight: head: CRC-32"):
        module.load_state_dict(state)
    state = module.state_dict()
    state["weight_raw"] = state["weight_raw"][:-1]
    with pytest.raises(codecllm.CorruptStreamError, match=r"weight: raw: \d+ elements"):
        module.load_state_dict(state)


@pytest.mark.parametrize("name", ["weight", "weight_raw", "weight_index"])
def test_checksums_of_a_state_dict_are_compared(name):
    module = CompressedLinear(linear())
    state = {k: v.clone() for k, v in module.state_dict().items()}
    state[name][state[name].numel() // 2] ^= 1
    for assign in (False, True):
        with pytest.raises(codecllm.CorruptStreamError, match=r"weight: .*CRC-32"):
            module.load_state_dict(state, assign=assign)


def test_checksums_may_be_left_to_the_caller():
    module = CompressedLinear(linear())
    state = {k: v.clone() for k, v in module.state_dict().items()}
    state["weight_raw"][3] ^= 1
    with checksums_compared():
        module.load_state_dict(state)
    with pytest.raises(codecllm.CorruptStreamError, match="raw: CRC-32"):
        module.load_state_dict(state)


def test_dense_state_dict_says_what_to_do():
    with pytest.raises(RuntimeError, match="Load it into the uncompressed model"):
        CompressedLinear(linear()).load_state_dict(linear().state_dict())


def test_deepcopy_and_torch_save_keep_everything():
    dense = linear()
    module = CompressedLinear(dense)
    assert_bits_equal(copy.deepcopy(module).decompress().weight, dense.weight)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh = CompressedLinear.from_streams(96, 80, None, bias=nn.Parameter(dense.bias.clone()))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert_bits_equal(fresh.decompress().weight, dense.weight)


def save_and_load(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class Scaled(nn.Linear):
    """As model code subclasses nn.Linear."""

    def __init__(self, *args, factor=2.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.factor = factor

    def forward(self, x):
        return super().forward(x) * self.factor


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        save_and_load,
    ],
    ids=["copy", "deepcopy", "pickle", "torch.save"],
)
def test_modules_of_subclasses_are_copied_and_pickled(copied):
    dense = Scaled(96, 80, factor=3.0, dtype=torch.bfloat16)
    module = coded_form(dense, coded_streams(dense), torch.bfloat16)
    again = copied(module)
    assert type(again) is type(module) and again.factor == 3.0
    x = torch.randn(2, 96, dtype=torch.bfloat16)
    assert torch.equal(again(x), module(x))
    assert type(dense_form(again)) is Scaled


def coded_streams(dense):
    return dict(zip(STREAM_NAMES, codecllm_ops.encode(dense.weight).tensors(), strict=True))


def test_requires_grad_leaves_the_streams_frozen():
    module = CompressedLinear(linear())
    assert module.requires_grad_(False) is module and not module.bias.requires_grad
    module.requires_grad_()
    assert module.bias.requires_grad and not module.weight.requires_grad


def test_bias_of_any_stride():
    module = CompressedLinear(linear())
    x, bias = torch.randn(2, 96, dtype=torch.bfloat16), module.bias.detach()
    expected = module(x)
    module.bias = nn.Parameter(bias.repeat_interleave(2)[::2])
    assert not module.bias.is_contiguous()
    assert torch.equal(module(x), expected)


def damaged(module):
    """Streams of the right sizes that do not end as the encoder began."""
    module.streams[0].data[:2] ^= 0x55
    return module


def test_errors_have_their_own_types_and_show_no_paths():
    dense = linear()
    embedding = CompressedEmbedding(nn.Embedding(64, 32))
    x = torch.randn(2, 96, dtype=torch.bfloat16)
    calls = [
        (codecllm.CorruptStreamError, lambda: damaged(CompressedLinear(dense))(x)),
        (codecllm.CorruptStreamError, lambda: damaged(CompressedLinear(dense, exact=True))(x)),
        (codecllm.CorruptStreamError, lambda: damaged(CompressedLinear(dense)).decompress()),
        (IndexError, lambda: embedding(torch.tensor([64]))),
        (IndexError, lambda: embedding(torch.tensor([-1]))),
        (RuntimeError, lambda: CompressedLinear(dense)(x.long())),
        (RuntimeError, lambda: CompressedLinear(dense)(x[:, 1:])),
    ]
    for error, call in calls:
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value).startswith("codecllm::") and "csrc" not in str(caught.value)
    with pytest.raises(RuntimeError, match=r"x is (torch\.int64|Long), not"):
        CompressedLinear(dense)(x.long())


def test_meta_module_takes_streams_by_assignment():
    dense = linear()
    module = CompressedLinear(dense)
    empty = copy.deepcopy(module).to("meta")
    assert not empty.ready
    empty.load_state_dict(module.state_dict(), assign=True)
    assert_bits_equal(empty.decompress().weight, dense.weight)


def test_meta_weight_cannot_be_coded():
    with pytest.raises(ValueError, match="meta device"):
        CompressedLinear(nn.Linear(4, 4, device="meta"))


def test_gradients_reach_x_and_bias():
    dense = linear(dtype=torch.float32)
    module = CompressedLinear(dense)
    x = torch.randn(4, 96, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    module(x).square().sum().backward()
    grad_bias = module.bias.grad.clone()
    module.bias.grad = None
    F.linear(y, dense.weight.detach(), module.bias).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(grad_bias, module.bias.grad)


def test_stored_int8_multiplies():
    dense = linear()
    dense.weight.data.uniform_(-1, 1)
    module = CompressedLinear(dense, format="int8")
    assert module.coded.info.stored
    x = torch.randn(2, 96)
    torch.testing.assert_close(module.float()(x), F.linear(x, module.decode(x.dtype), module.bias))


def test_compiles_as_one_graph():
    module = CompressedLinear(linear())
    x = torch.randn(3, 96, dtype=torch.bfloat16)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), module(x))


def test_statistics_count_only_when_asked():
    module = CompressedLinear(linear())
    assert module.statistics is None
    codecllm.set_statistics(module)
    module(torch.randn(2, 3, 96, dtype=torch.bfloat16))
    assert (module.statistics.calls, module.statistics.vectors) == (1, 6)
    assert module.statistics.seconds > 0


def test_two_threads_get_the_same_answer():
    module = CompressedLinear(linear(rows=256, cols=256))
    x = torch.randn(3, 256, dtype=torch.bfloat16)
    expected, wrong = module(x), []

    def work():
        for _ in range(50):
            if not torch.equal(module(x), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_rows(dtype):
    torch.manual_seed(0)
    dense = nn.Embedding(100, 48, padding_idx=7, dtype=dtype)
    module = CompressedEmbedding(dense)
    ids = torch.tensor([[0, 7, 99], [5, 5, 1]])
    assert_bits_equal(module(ids), dense(ids))
    back = module.decompress()
    assert back.padding_idx == 7
    assert_bits_equal(back.weight, dense.weight)


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"sparse": True}])
def test_embedding_options_that_cannot_be_honoured_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        CompressedEmbedding(nn.Embedding(10, 10, **option))


def test_autocast_casts_like_a_dense_layer():
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    layer = CompressedLinear(linear)
    x = torch.randn(5, 64, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        expected = linear(x)
    assert y.dtype == expected.dtype == torch.bfloat16
    # x is rounded to bfloat16 in both, the dense weight as well: 2^-9 each, and 2^-9 of the result.
    bound = 3 * 2**-8 * (x.abs() @ linear.weight.abs().T + linear.bias.abs())
    assert ((y.float() - expected.float()).abs() <= bound).all()
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32


def test_streams_loaded_in_inference_mode_serve_training():
    module = CompressedLinear(linear(dtype=torch.float32))
    other = CompressedLinear(linear(dtype=torch.float32, seed=1), format="int8")
    assert module.streams[0].shape != other.streams[0].shape
    with torch.inference_mode():
        module.load_state_dict(other.state_dict())
    x = torch.randn(2, 96, requires_grad=True)
    module(x).sum().backward()
    assert torch.equal(module(x), other(x)) and not any(s.is_inference() for s in module.streams)


def test_a_coded_weight_is_not_parametrized():
    module, x = CompressedLinear(linear()), torch.randn(2, 96).bfloat16()
    y = module(x)
    with pytest.raises(RuntimeError, match="decompress the module first"):
        nn.utils.parametrizations.weight_norm(module)
    assert torch.equal(module(x), y)


def test_float64_is_decoded_first():
    """No kernel accumulates in it, and neither modules nor faces refuse it."""
    dense = linear(dtype=torch.float32)
    module, x = CompressedLinear(dense).double(), torch.randn(2, 96, dtype=torch.float64)
    want = dense.double()(x)
    assert torch.equal(module(x), want)
    assert torch.equal(F.linear(x, module.weight, module.bias), want)
    assert torch.equal(x @ module.weight.T + module.bias, x @ dense.weight.T + dense.bias)
