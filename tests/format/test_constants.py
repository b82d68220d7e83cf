"""The numbers of the format are written twice: a C++ program prints those of csrc/core."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from codecllm_ops.codec import order
from codecllm_ops.codec.rans import reference, tables
from codecllm_ops.format import (
    FORMATS,
    GROUP_COLS,
    LANES,
    TILE_ROWS,
    fixed,
    geometry,
    head,
    layout_word,
    scales,
    segments,
)
from codecllm_ops.format.geometry import containers, plane_tile_bytes

ROOT = Path(__file__).resolve().parents[2]
CXX = shutil.which("g++") or shutil.which("clang++")
GROUPS = [1, 2, 3, 5, 8, 31, 32, 1024]
COUNTS = [1, 2, 3, 4, 5, 7, 8, 13]


@pytest.fixture(scope="module")
def cpp(tmp_path_factory):
    """What csrc/core says, as a dictionary."""
    if not CXX:
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp("constants") / "constants"
    source = Path(__file__).with_name("print_constants.cpp")
    command = [CXX, "-std=c++20", "-O0", f"-I{ROOT / 'csrc'}", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    return json.loads(subprocess.run([program], check=True, capture_output=True).stdout)


def test_sizes_are_equal(cpp):
    assert cpp["constants"] == {
        "lanes": LANES,
        "tile_rows": TILE_ROWS,
        "group_cols": GROUP_COLS,
        "pairs_per_group": geometry.PAIRS_PER_GROUP,
        "max_tile_cols": geometry.MAX_TILE_COLS,
        "stream_align": geometry.STREAM_ALIGN,
        "stream_pad": geometry.STREAM_PAD,
        "min_scale_bits": head.MIN_SCALE_BITS,
        "max_scale_bits": head.MAX_SCALE_BITS,
        "escape": head.ESCAPE,
        "max_index": segments.MAX_INDEX,
        "table_header": tables.TABLE_HEADER,
        "rans_l": reference.RANS_L,
        "fixed_containers": fixed.FIXED_CONTAINERS,
        "fixed_unit": fixed.FIXED_UNIT,
        "fixed_codes": fixed.FIXED_CODES,
        "max_fixed_base": fixed.MAX_FIXED_BASE,
        "max_fixed_tile_cols": fixed.MAX_FIXED_TILE_COLS,
        "listed_bytes": fixed.LISTED_BYTES,
        "fixed_place": fixed.FIXED_PLACE,
        "fixed_code": fixed.FIXED_CODE,
        "list_entry": 15 << 28 | 0xABC << 16 | 0x1234,
    }


def test_layout_has_the_same_fields(cpp):
    assert [tuple(field) for field in cpp["layout"]] == list(layout_word.FIELDS)
    assert cpp["kinds"] == {
        "codings": len(layout_word.CODINGS),
        "scale_kinds": len(scales.SCALE_KINDS),
        "rans": layout_word.CODINGS.index("rans"),
        "stored": layout_word.CODINGS.index("stored"),
        "fixed": layout_word.CODINGS.index("fixed"),
        "row_scale": scales.ROW_SCALE,
    }


def test_fields_of_the_layout_do_not_overlap():
    bits = [first + i for _, first, n in layout_word.FIELDS for i in range(n)]
    assert len(bits) == len(set(bits)) and max(bits) < 63
    for number in range(8):
        layout = layout_word.Layout(*(number % (1 << n) for _, _, n in layout_word.FIELDS))
        if layout.coding < len(layout_word.CODINGS) and layout.scale_kind in scales.SCALE_KINDS:
            assert layout_word.Layout.unpack(layout.pack()) == layout


def test_weight_formats_and_their_planes_are_equal(cpp):
    assert cpp["formats"] == [
        {
            "id": f.id,
            "word_bits": f.word_bits,
            "coded_shift": f.coded_shift,
            "coded_bits": f.coded_bits,
            "flip": f.flip,
            "planes": [[p.mask, p.bits, int(p.low_half)] for p in f.planes],
        }
        for f in FORMATS.values()
    ]


def test_pairs_of_a_lane_are_at_the_same_place(cpp):
    places = [[list(reference.pair_position(lane, j)) for j in range(4)] for lane in range(LANES)]
    assert cpp["pair_places"] == places
    every = {(r, c + i) for lane in places for r, c in lane for i in range(2)}
    assert every == {(r, c) for r in range(TILE_ROWS) for c in range(GROUP_COLS)}


def test_containers_are_at_the_same_place(cpp):
    for n in COUNTS:
        at = [[reference.container_at(i, lane, n) for lane in range(LANES)] for i in range(n)]
        assert cpp["container_at"][str(n)] == at
        assert sorted(place for lanes in at for place in lanes) == list(range(n * LANES))


def test_raw_planes_of_a_tile_have_the_same_size(cpp):
    for fmt in FORMATS.values():
        expected = [plane_tile_bytes(fmt.plane_bits, GROUP_COLS * groups) for groups in GROUPS]
        assert cpp["raw_tile_bytes"][str(fmt.id)] == expected
        assert all(size % 128 == 0 for size in expected)
    for bits in (1, 2, 4, 8, 16):
        assert cpp["containers"][str(bits)] == [containers(bits, groups) for groups in GROUPS]


def test_plane_of_fixed_has_the_same_size_and_bits(cpp):
    widths = [GROUP_COLS * groups for groups in GROUPS]
    assert cpp["fixed_tile_bytes"] == [plane_tile_bytes(fixed.FIXED_PLANE_BITS, w) for w in widths]
    assert cpp["fixed_spread"] == [mask for mask, _ in fixed.FIXED_SPREAD]
    # Three containers hold each of the twelve bits of a half once, and so does the fourth pair.
    masks = [mask for mask, _ in fixed.FIXED_SPREAD]
    assert sum(masks) == masks[0] | masks[1] | masks[2] == fixed.FIXED_PLACE
    for mask, by in fixed.FIXED_SPREAD:
        assert order.rotate_left(mask, by) & fixed.FIXED_PLACE == 0


def test_slot_table_entry_has_the_same_fields(cpp):
    segment = segments.Segment(16, 0, pairs=np.array([33 * 9]), freqs=np.array([100]))
    entry = int(tables.slot_table(segment, 8)[7])  # slot 7 of the pair (9, 9)
    fields = cpp["entry_fields"]
    assert entry & fields["bias_mask"] == 7
    assert entry >> fields["freq_shift"] & fields["bias_mask"] == 100
    assert entry >> fields["index_shift"] & fields["index_pair"] == 9 | 9 << 16
    assert entry < fields["escape_from"] <= int(tables.slot_table(segment, 8)[255])
