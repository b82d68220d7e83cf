"""Wrong arguments and damaged bytes: an error that says what is wrong, never a wrong result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import codecllm_ops as ops
from cases import every_backend, random_words, running, to_tensor, weights
from codecllm_ops import CodedMatrix, CorruptStreamError, UnsupportedFormatError
from codecllm_ops.codec.rans.index import read_index, write_index
from codecllm_ops.format import FORMATS
from codecllm_ops.format.layout_word import FIELDS, Layout

BF16 = FORMATS["bf16"]


@pytest.fixture(scope="module")
def coded() -> CodedMatrix:
    return ops.encode(weights(33, 64, BF16), tile_cols=32, allow_stored=False)


@pytest.fixture(scope="module")
def scaled() -> CodedMatrix:
    q, scale = ops.quantize_int8(weights(33, 64, BF16))
    return ops.encode(q, scale=scale, tile_cols=32, allow_stored=False)


# ---- encode -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.uint8, torch.bool])
def test_dtype_without_a_format(dtype):
    with pytest.raises(UnsupportedFormatError, match=f"no weight format codes {dtype}"):
        ops.encode(torch.zeros(16, 16, dtype=dtype))


@pytest.mark.parametrize("shape", [(), (16,), (2, 16, 16)])
def test_only_matrices_are_coded(shape):
    with pytest.raises(ValueError, match="a matrix"):
        ops.encode(torch.zeros(shape, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("tile_cols", 0, "tile_cols 0"),
        ("tile_cols", 8, "tile_cols 8"),
        ("tile_cols", 24, "tile_cols 24"),
        ("tile_cols", -16, "tile_cols -16"),
        ("tile_cols", 16400, "tile_cols 16400"),
        ("scale_bits", 7, "scale_bits 7"),
        ("scale_bits", 12, "scale_bits 12"),
        ("predictor", "", "predictor ''"),
    ],
)
def test_parameter_out_of_range(option, value, message):
    with pytest.raises(ValueError, match=message):
        ops.encode(weights(16, 16, BF16), **{option: value})


@pytest.mark.parametrize(
    "scale", [torch.ones(2), torch.ones(33, dtype=torch.float16), torch.ones(1, 33), torch.ones(0)]
)
def test_scale_of_another_shape_or_dtype(scale):
    q = weights(33, 16, FORMATS["int8"])
    with pytest.raises(ValueError, match=r"not float32 \[1\] or \[33\]"):
        ops.encode(q, scale=scale)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scales_are_finite(value):
    q, scale = weights(33, 16, FORMATS["int8"]), torch.ones(33)
    scale[32] = value
    with pytest.raises(ValueError, match="scale has NaN or infinite"):
        ops.encode(q, scale=scale)


def test_meta_tensor_has_nothing_to_encode():
    with pytest.raises(ValueError, match="a tensor on the meta device has no values"):
        ops.encode(torch.empty(16, 16, dtype=torch.bfloat16, device="meta"))


def test_lossless_formats_take_no_scale():
    with pytest.raises(UnsupportedFormatError, match="bf16 takes no scale"):
        ops.encode(weights(16, 16, BF16), scale=torch.ones(1))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_only_finite_weights_are_quantised(value):
    w = torch.ones(4, 4)
    w[1, 2] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        ops.quantize_int8(w)
    with pytest.raises(ValueError, match="per='column'"):
        ops.quantize_int8(torch.ones(4, 4), per="column")


# ---- decode_linear ------------------------------------------------------------------------------


@every_backend
def test_linear_names_what_does_not_fit(coded, backend):
    x = torch.ones(2, 64, dtype=torch.bfloat16)
    wrong = [
        ((x.double(), coded), "x is"),
        ((x.int(), coded), "x is"),
        ((x[:, :63], coded), "last dimension of x must be 64"),
        ((x[:0, :63], coded), "last dimension of x must be 64"),
        ((torch.tensor(1.0), coded), "last dimension of x must be 64"),
        ((x, coded, torch.ones(32, dtype=x.dtype)), "bias"),
        ((x, coded, torch.ones(33)), "bias"),
        ((x, coded, torch.ones(1, 33, dtype=x.dtype)), "bias"),
    ]
    with running(backend):
        for args, message in wrong:
            with pytest.raises(RuntimeError, match=f"^codecllm::decode_linear: .*{message}"):
                ops.decode_linear(*args)


@every_backend
def test_wrong_dtypes_are_named(coded, backend):
    x = torch.ones(2, 64, dtype=torch.bfloat16)
    with running(backend):
        with pytest.raises(RuntimeError, match=r"x is (Double|torch\.float64), not"):
            ops.decode_linear(x.double(), coded)
        with pytest.raises(RuntimeError, match=r"bias is (Float|torch\.float32).*, not .*loat16"):
            ops.decode_linear(x, coded, torch.ones(33))


@every_backend
def test_stored_matrix_checks_the_same(backend):
    coded = ops.encode(to_tensor(random_words(33, 64, BF16), BF16))
    assert coded.info.stored
    x = torch.ones(2, 64, dtype=torch.bfloat16)
    with running(backend):
        for args in ((x.double(), coded), (x[:, :63], coded), (x, coded, torch.ones(33))):
            with pytest.raises(RuntimeError, match="codecllm::decode_linear: "):
                ops.decode_linear(*args)


@every_backend
def test_scale_that_is_missing_or_not_wanted(coded, scaled, backend):
    x, ids = torch.ones(2, 64), torch.tensor([1])
    linear = getattr(
        torch.ops.codecllm, "_decode_then_linear" if backend == "reference" else "decode_linear"
    )
    for matrix, scale in ((scaled, None), (coded, torch.ones(1)), (scaled, torch.ones(32))):
        wrong = matrix.operand._replace(scale=scale)
        for call in (
            lambda w=wrong: torch.ops.codecllm.decode(*w),
            lambda w=wrong: torch.ops.codecllm.decode_rows(ids, *w),
            lambda w=wrong: linear(x, *w),
        ):
            with running(backend), pytest.raises(RuntimeError, match=r"codecllm::decode.* scale"):
                call()


# ---- decode_rows --------------------------------------------------------------------------------


@every_backend
@pytest.mark.parametrize("bad", [-1, 33, 2**31, 2**62, -(2**63)])
def test_id_out_of_range(coded, backend, bad):
    stored = ops.encode(to_tensor(random_words(33, 64, BF16), BF16))
    for matrix in (coded, stored):
        for ids in (torch.tensor([0, bad]), torch.tensor(bad)):
            with running(backend), pytest.raises(IndexError, match="out of range"):
                ops.decode_rows(ids, matrix)


@every_backend
def test_no_id_is_in_range_of_no_rows(backend):
    empty = ops.encode(weights(0, 64, BF16), allow_stored=False)
    with running(backend):
        with pytest.raises(IndexError, match="out of range"):
            ops.decode_rows(torch.tensor([0]), empty)
        assert ops.decode_rows(torch.zeros(0, dtype=torch.int64), empty).shape == (0, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int16])
def test_ids_are_integers(coded, dtype):
    with pytest.raises(RuntimeError, match=f"ids are {dtype}, not int64 or int32"):
        ops.decode_rows(torch.zeros(2, dtype=dtype), coded)


# ---- devices ------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["stream", "raw", "index", "table", "scale"])
def test_parts_on_several_devices_are_refused(scaled, part):
    args = scaled.operand
    args = args._replace(**{part: getattr(args, part).to("meta")})
    x, ids = torch.ones(2, 64), torch.tensor([1])
    codecllm = torch.ops.codecllm
    for call in (
        lambda: codecllm.decode(*args),
        lambda: codecllm.decode_rows(ids, *args),
        lambda: codecllm.decode_linear(x, *args),
    ):
        with pytest.raises(RuntimeError, match=r"codecllm::decode.* is on (meta|cpu)"):
            call()


def test_operand_on_another_device_is_refused(coded):
    x, bias = torch.ones(2, 64), torch.ones(33)
    for args in ((x.to("meta"), coded), (x, coded, bias.to("meta"))):
        with pytest.raises(RuntimeError, match=r"codecllm::decode_linear: .* is on (meta|cpu)"):
            ops.decode_linear(*args)
    with pytest.raises(RuntimeError, match="codecllm::decode_rows: ids is on meta"):
        ops.decode_rows(torch.zeros(2, dtype=torch.int64, device="meta"), coded)


# ---- damaged bytes ------------------------------------------------------------------------------


def calls(matrix):
    """Everything that reads a coded matrix of 64 columns, row 1 included."""
    x = torch.ones(1, matrix.shape[1], dtype=torch.bfloat16)
    return {
        "decode": lambda: ops.decode(matrix),
        "decode_rows": lambda: ops.decode_rows(torch.arange(matrix.shape[0]), matrix),
        "decode_linear": lambda: ops.decode_linear(x, matrix),
        "decode_linear of many rows": lambda: ops.decode_linear(x.expand(300, -1), matrix),
    }


def assert_corrupt(matrix, backend, match="corrupt|index|coded plane|raw"):
    for name, call in calls(matrix).items():
        with running(backend), pytest.raises(CorruptStreamError, match=match) as error:
            call()
        assert "/" not in str(error.value), f"{name} shows a path"


@every_backend
def test_lane_that_ends_too_early(coded, backend):
    index = coded.index.clone()
    index[1] -= 1
    assert_corrupt(replace(coded, index=index), backend, "coded plane|index")


@every_backend
def test_lane_with_a_word_left_over(coded, backend):
    """The states end as they should: only the position tells."""
    bits = coded.info.len_bits
    starts, lengths, segments = read_index(coded.index.numpy(), bits)
    lengths[0, 31] += 1
    assert 2 * lengths[0].sum() <= starts[1]  # where padding was, nothing else moves
    index = torch.from_numpy(write_index(starts, lengths, segments, bits))
    assert_corrupt(replace(coded, index=index), backend, "coded plane")


@every_backend
def test_damaged_first_state(coded, backend):
    stream = coded.stream.clone()
    stream[:2] ^= 0x55
    assert_corrupt(replace(coded, stream=stream), backend, "coded plane")


@every_backend
@pytest.mark.parametrize("offset", [-1, 1 << 20, 2**31 - 1])
def test_tile_outside_the_coded_plane(coded, backend, offset):
    index = coded.index.clone()
    index[0] = offset
    assert_corrupt(replace(coded, index=index), backend, "index")


@every_backend
def test_tile_of_another_segment(coded, backend):
    index = coded.index.clone()
    index[1] += 1 << 16
    assert_corrupt(replace(coded, index=index), backend, "index")


@every_backend
@pytest.mark.parametrize("part", ["stream", "raw", "index"])
def test_shortened_part(coded, backend, part):
    # The last 16 bytes of the stream are there for speed; up to 16 more only align them.
    spare = 33 if part == "stream" else 1
    for keep in (0, 1, getattr(coded, part).numel() - spare):
        assert_corrupt(replace(coded, **{part: getattr(coded, part)[:keep].clone()}), backend)


@every_backend
def test_shortened_stored_matrix(backend):
    stored = ops.encode(to_tensor(random_words(33, 64, BF16), BF16))
    for keep in (0, stored.stream.numel() - 1):
        short = replace(stored, stream=stored.stream[:keep].clone())
        with running(backend), pytest.raises(CorruptStreamError, match="stored"):
            ops.decode(short)


def with_field(layout: int, name: str, value: int) -> int:
    return Layout.unpack(layout)._replace(**{name: value}).pack()


@every_backend
def test_layout_that_does_not_exist(coded, backend):
    """The integer that the ops take: whatever it says, kernels stay inside the tensors."""
    layout = coded.layout
    for wrong in (
        0,
        7,
        with_field(layout, "format", 99),
        with_field(layout, "scale_bits", 15),
        with_field(layout, "scale_bits", 8),
        with_field(layout, "tile_cols", 0),
        with_field(layout, "tile_cols", 17),
    ):
        with (
            running(backend),
            pytest.raises((RuntimeError, ValueError, IndexError, ZeroDivisionError)),
        ):
            torch.ops.codecllm.decode(*coded.operand._replace(layout=wrong))


@every_backend
@pytest.mark.parametrize("width", [0, 1, 2, 19, 1000])
def test_index_records_of_no_width_that_exists(coded, backend, width):
    index = torch.zeros(coded.operand.index.shape[0], width, dtype=torch.int32)
    with running(backend), pytest.raises((RuntimeError, ValueError), match="corrupt index"):
        torch.ops.codecllm.decode(*coded.operand._replace(index=index))


def bits_without_a_meaning() -> list[int]:
    known = {first + i for _, first, bits in FIELDS for i in range(bits)}
    return [bit for bit in range(64) if bit not in known]


@every_backend
@pytest.mark.parametrize("bit", [*bits_without_a_meaning()[::8], 62, 63])
def test_bits_of_the_layout_without_a_meaning_are_refused(scaled, backend, bit):
    stored = ops.encode(to_tensor(random_words(33, 64, BF16), BF16))
    for matrix in (scaled, stored):
        layout = matrix.layout
        wrong = layout | (1 << bit) if bit < 63 else layout - (1 << 63)
        with running(backend), pytest.raises((RuntimeError, ValueError), match="unknown bits"):
            torch.ops.codecllm.decode(*matrix.operand._replace(layout=wrong))


@every_backend
@pytest.mark.parametrize("field", ["scale_kind", "coding"])
def test_kind_that_does_not_exist(scaled, backend, field):
    wrong = with_field(scaled.layout, field, 3)
    with running(backend), pytest.raises((RuntimeError, ValueError), match="unknown bits"):
        torch.ops.codecllm.decode(*scaled.operand._replace(layout=wrong))


@every_backend
@pytest.mark.parametrize(
    "shape", [(34, 64), (33, 65), (-1, 64), (33, -1), (2**31, 2**31), (2**62, 4)]
)
def test_shape_that_is_not_the_matrix(coded, backend, shape):
    wrong = coded.operand._replace(rows=shape[0], cols=shape[1])
    with running(backend), pytest.raises((RuntimeError, ValueError)):
        torch.ops.codecllm.decode(*wrong)


def test_corruption_has_its_type_under_transforms(coded):
    stream = coded.stream.clone()
    stream[:2] ^= 0x55
    bad = replace(coded, stream=stream)
    with pytest.raises(CorruptStreamError):
        torch.func.vmap(lambda x: ops.decode_linear(x, bad))(torch.ones(2, 64))
