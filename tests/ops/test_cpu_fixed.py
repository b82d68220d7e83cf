"""The coding fixed on every instruction set: borders, places in memory, and bytes that lie."""

from __future__ import annotations

import functools

import pytest
import torch

import codecllm_ops as ops
from assertions import assert_linear_close, assert_same_words
from cases import ISAS, needs_cpu_kernels, running, to_tensor, weights
from codecllm_ops import CodedMatrix
from codecllm_ops.codec.operand import Operand
from codecllm_ops.format import FORMATS

pytestmark = needs_cpu_kernels
every_isa = pytest.mark.parametrize("isa", ISAS)
BF16 = FORMATS["bf16"]
OPS = torch.ops.codecllm

# Rows and columns around tiles of 16 rows, groups of 16 columns, units of 64.
BORDERS = [(15, 63), (16, 64), (17, 65), (31, 127), (32, 128), (33, 129), (16, 48), (48, 15)]


def fixed(w: torch.Tensor, tile_cols: int | None = None) -> CodedMatrix:
    return ops.encode(w, coding="fixed", tile_cols=tile_cols, allow_stored=False)


def listed_at_borders(rows: int, cols: int) -> torch.Tensor:
    """Weights with NaN, infinities and subnormals in the first and last row and column of every
    16 x 16 group, and in the matrix's corners."""
    w = weights(rows, cols, BF16)
    r, c = torch.arange(rows)[:, None] % 16, torch.arange(cols)[None] % 16
    border = ((r % 15 == 0) & (c % 5 == 0)) | ((c % 15 == 0) & (r % 5 == 0))
    special = torch.tensor([0x7FC1, -0x80, 1, -0x7F81], dtype=torch.int16).view(torch.bfloat16)
    w[border] = special[torch.arange(int(border.sum())) % 4]
    w[0, 0] = w[-1, -1] = w[0, -1] = w[-1, 0] = torch.inf
    return w


def operand_of(c: CodedMatrix, **changed: torch.Tensor) -> Operand:
    return c.operand._replace(**changed)


def moved(t: torch.Tensor, by: int) -> torch.Tensor:
    """The same bytes at an address that is `by` more than a multiple of 64."""
    buffer = torch.empty(t.numel() + 128, dtype=torch.uint8)
    begin = -buffer.data_ptr() % 64 + by
    out = buffer[begin : begin + t.numel()]
    out.copy_(t)
    assert out.data_ptr() % 64 == by
    return out


# ---- decoding -----------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("tile_cols", [16, 48, 64, 80, 128])
@pytest.mark.parametrize("shape", BORDERS, ids=str)
def test_borders(isa, shape, tile_cols):
    w = listed_at_borders(*shape)
    with running(isa):
        coded = fixed(w, tile_cols).check()
        assert_same_words(ops.decode(coded), w)
        ids = torch.arange(shape[0]).repeat_interleave(2)
        assert_same_words(ops.decode_rows(ids, coded), w[ids])
        for dtype in (torch.float32, torch.float16):
            assert_same_words(ops.decode(coded, dtype), w.to(dtype))


@every_isa
@pytest.mark.parametrize("by", [1, 2, 15, 32])
def test_tensors_at_any_address(isa, by):
    """safetensors maps uint8 at any byte."""
    w = listed_at_borders(40, 200)
    coded = fixed(w, 128)
    operand = operand_of(coded, stream=moved(coded.stream, by), raw=moved(coded.raw, by))
    with running(isa):
        assert_same_words(OPS.decode(*operand), w)
        ids = torch.tensor([39, 0, 16])
        assert_same_words(OPS.decode_rows(ids, *operand), w[ids])


@functools.cache
def larger_than_the_caches(cols: int) -> tuple[torch.Tensor, CodedMatrix]:
    w = weights(1090, cols, BF16)
    w[::7, ::61] = torch.nan
    assert w.nbytes > 4 << 20
    with running("reference"):
        return w, fixed(w)


@every_isa
@pytest.mark.parametrize("cols", [2048, 2064, 2056])
def test_larger_than_the_caches(isa, cols):
    """Written past the caches where rows begin at cache lines, and as ever where not."""
    w, expected = larger_than_the_caches(cols)
    with running(isa):
        assert fixed(w) == expected == ops.encode(w, allow_stored=False).to("fixed")
        assert_same_words(ops.decode(expected), w)
        out = torch.empty(w.numel() + 64, dtype=torch.bfloat16)
        for shift in (1, 8):
            into = out[shift : shift + w.numel()].view(w.shape)
            OPS.decode.out(*expected.operand, out=into)
            assert_same_words(into, w)


@every_isa
@pytest.mark.parametrize("m", [1, 9, 200])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_products_meet_listed_weights(isa, m, dtype):
    w = weights(50, 300, BF16)
    w[::5, ::7] *= 2.0**30 if dtype != torch.float16 else 64.0
    w[::3, ::11] = 2.0**-100
    w[16:18] = 0
    x = torch.randn(m, 300, generator=torch.Generator().manual_seed(1)).to(dtype)
    with running(isa):
        y = ops.decode_linear(x, coded := fixed(w, 64))
    assert coded.info.segments[0].listed > 100
    assert_linear_close(y, x, w, rounded_weight=m == 200)


# ---- transcoding --------------------------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("source", [16, 48, 64, 208])
@pytest.mark.parametrize("target", [16, 64, 112, 4096])
def test_tiles_of_source_and_target_may_differ(isa, source, target):
    """Groups that a source tile leaves over wait for the next one."""
    parts = [listed_at_borders(rows, 330) for rows in (17, 32, 1)]
    w = torch.cat(parts)
    expected = CodedMatrix.concat_rows([fixed(p, target) for p in parts])
    with running(isa):
        for predictor in ("none", "left"):
            rans = CodedMatrix.concat_rows([
                ops.encode(p, tile_cols=source, predictor=predictor, allow_stored=False)
                for p in parts
            ])  # fmt: skip
            assert rans.to("fixed", tile_cols=target) == expected
        assert fixed(w, source).to("fixed", tile_cols=target) == fixed(w, target)


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        (torch.tensor([240], dtype=torch.int32), "window base 240 outside 0..239"),
        (torch.tensor([-1], dtype=torch.int32), "window base -1"),
        (torch.tensor([1, 2], dtype=torch.int32), "2 bases for 1 segments"),
        (torch.tensor([1]), "bases is Long"),
    ],
)
def test_windows_are_checked(bases, message):
    stream, raw, index, table, _, *rest = fixed(weights(16, 64, BF16)).operand
    with pytest.raises(RuntimeError, match=message):
        OPS._to_fixed(stream, raw, index, table, *rest, bases, 64)


@pytest.mark.parametrize("tile_cols", [0, 24, 4112])
def test_target_tiles_are_checked(tile_cols):
    stream, raw, index, table, _, *rest = fixed(weights(16, 64, BF16)).operand
    bases = torch.tensor([100], dtype=torch.int32)
    with pytest.raises(RuntimeError, match=f"tile_cols {tile_cols} is not a multiple of 16"):
        OPS._to_fixed(stream, raw, index, table, *rest, bases, tile_cols)


def test_other_formats_are_refused():
    coded = ops.encode(weights(16, 64, FORMATS["fp16"]), allow_stored=False)
    stream, raw, index, table, _, *rest = coded.operand
    with pytest.raises(RuntimeError, match="is for bf16, not for weight format id 2"):
        OPS._to_fixed(stream, raw, index, table, *rest, torch.zeros(1, dtype=torch.int32), 64)
    with pytest.raises(RuntimeError, match="a matrix of another coding"):
        OPS._check_fixed(stream, raw, index, table, *rest)


# ---- bytes that lie -----------------------------------------------------------------------------

SHAPE, TILE_COLS = (40, 330), 128  # tiles 3 x 3, the last ones narrow and low


@pytest.fixture(scope="module")
def coded() -> CodedMatrix:
    c = fixed(listed_at_borders(*SHAPE), TILE_COLS)
    assert c.index.numel() == 9
    return c


def code_of_zero_with_mantissa(c: CodedMatrix, tile: int):
    """In the last container of the tile, so in its last unit."""
    groups = [8, 8, 5]
    before = sum(384 * groups[t % 3] for t in range(tile + 1)) // 4 - 1
    ints = c.stream.clone().view(torch.int32)
    ints[before] = ints[before] & ~0x0780 | 1
    return {"stream": ints.view(torch.uint8)}


def entry(c: CodedMatrix, tile: int, row: int, col: int):
    """The last entry of a tile somewhere else."""
    ints = c.raw.clone().view(torch.int32)
    at = int(c.index[tile]) - 1
    place = row << 12 | col
    ints[at] = (place << 16 | int(ints[at]) & 0xFFFF) - (1 << 32 if row > 7 else 0)
    return {"raw": ints.view(torch.uint8)}


def end(c: CodedMatrix, tile: int, value: int):
    index = c.operand.index.clone()
    index[tile] = value
    return {"index": index}


def swapped(c: CodedMatrix, tile: int):
    ints = c.raw.clone().view(torch.int32)
    at = int(c.index[tile]) - 2
    ints[[at, at + 1]] = ints[[at + 1, at]]
    return {"raw": ints.view(torch.uint8)}


LIES = {
    "zero with mantissa": lambda c: (code_of_zero_with_mantissa(c, 4), "coded plane", 4),
    "zero with mantissa, narrow": lambda c: (code_of_zero_with_mantissa(c, 8), "coded plane", 8),
    "column of padding": lambda c: (entry(c, 2, 15, 74), "index", 2),
    "column of the next tile": lambda c: (entry(c, 0, 15, 128), "index", 0),
    "largest column": lambda c: (entry(c, 0, 15, 4095), "index", 0),
    "row of padding": lambda c: (entry(c, 8, 8, 73), "index", 8),
    "out of order": lambda c: (swapped(c, 5), "index", 5),
    "beyond the list": lambda c: (end(c, 8, c.raw.numel() // 4 + 1), "index", 8),
    "negative": lambda c: (end(c, 3, -1), "index", 3),
    "descending": lambda c: (end(c, 3, int(c.index[2]) - 1), "index", 3),
}


@every_isa
@pytest.mark.parametrize("lie", LIES)
def test_lies_are_found_by_every_op(isa, coded, lie):
    change, what, tile = LIES[lie](coded)
    operand = operand_of(coded, **change)
    x = torch.ones(2, SHAPE[1], dtype=torch.bfloat16)
    rows = torch.arange(SHAPE[0])
    bases = torch.tensor([100], dtype=torch.int32)
    plain = (*operand[:4], *operand[5:])
    calls = {
        "decode": lambda: OPS.decode(*operand),
        "decode float32": lambda: OPS._decode_then_linear(x.float(), *operand),
        "decode_rows": lambda: OPS.decode_rows(rows, *operand),
        "_to_fixed": lambda: OPS._to_fixed(*plain, bases, 64),
    }
    if what == "index":  # products do not look at what the plane has in the place of code 0
        calls["decode_linear"] = lambda: OPS.decode_linear(x, *operand)
        calls["large decode_linear"] = lambda: OPS.decode_linear(x.repeat(100, 1), *operand)
    with running(isa):
        for name, call in calls.items():
            with pytest.raises(RuntimeError, match=f"corrupt {what}"):
                call()
                pytest.fail(f"{name} did not notice")
        assert OPS._check_fixed(*plain) == 1 + tile


@every_isa
def test_a_listed_weight_that_the_plane_has_is_found_by_the_check(isa, coded):
    """Too dear for every call: words are the list's, products are wrong."""
    w = listed_at_borders(*SHAPE)
    ints = coded.raw.clone().view(torch.int32)
    ints[0] += 1 << 16  # column 1, where a plain weight is
    operand = operand_of(coded, raw=ints.view(torch.uint8))
    with running(isa):
        assert OPS._check_fixed(*operand[:4], *operand[5:]) == 1
        out = OPS.decode(*operand)
    w[0, 1], w[0, 0] = w[0, 0].clone(), 0
    assert_same_words(out, w)


@every_isa
def test_only_the_rows_that_are_wanted_are_looked_at(isa, coded):
    operand = operand_of(coded, **code_of_zero_with_mantissa(coded, 8))
    with running(isa):
        rows = torch.arange(32)
        assert_same_words(OPS.decode_rows(rows, *operand), listed_at_borders(*SHAPE)[:32])


# ---- every pattern in every window --------------------------------------------------------------


@every_isa
@pytest.mark.parametrize("base", [0, 1, 112, 239])
def test_every_pattern_in_a_window(isa, base):
    w = to_tensor(torch.arange(1 << 16).view(256, 256).numpy(), BF16)
    stored = ops.encode(w, allow_stored=False).to("stored").operand
    bases = torch.tensor([base], dtype=torch.int32)
    with running(isa):
        plane, listed, ends = OPS._to_fixed(*stored[:4], *stored[5:], bases, 64)
        table = torch.tensor([[base, 0, 0, 256, 0, 0, 0, 0]], dtype=torch.int32)
        layout = fixed(w, 64).operand.layout
        plain = (plane, listed, ends, table, 256, 256, layout)
        assert OPS._check_fixed(*plain) == 0
        assert_same_words(OPS.decode(plane, listed, ends, table, None, 256, 256, layout), w)
    assert listed.numel() == 4 * (65536 - 2 - 15 * 256)
