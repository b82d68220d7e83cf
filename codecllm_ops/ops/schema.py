"""Schemas of all ops: the one source of truth. Defined in Python, so they exist without a library.

A coded matrix is eight arguments in a row, in the order of codec/operand.py: `_CODED`. In front of
them is what is multiplied or looked up, behind them all else.
"""

from __future__ import annotations

import torch
from torch.library import Library

_CODED = (
    "Tensor stream, Tensor raw, Tensor index, Tensor table, Tensor? scale, "
    "SymInt rows, SymInt cols, int layout"
)

PUBLIC = {
    "encode": (
        "(Tensor weight, Tensor? scale=None, *, str? format=None, int? tile_cols=None, "
        "int scale_bits=11, str predictor='none', bool allow_stored=True, str coding='rans') "
        "-> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "decode": f"({_CODED}, ScalarType? dtype=None) -> Tensor",
    # Returns nothing: torch.compile cannot functionalise a custom op whose result is its argument.
    "decode.out": f"({_CODED}, *, Tensor(a!) out) -> ()",
    "decode_linear": f"(Tensor x, {_CODED}, Tensor? bias=None) -> Tensor",
    "decode_rows": f"(Tensor ids, {_CODED}, ScalarType? dtype=None) -> Tensor",
}

# What a compiled library implements; not for users. Scales are applied in Python.
_PLAIN = "Tensor stream, Tensor raw, Tensor index, Tensor table, int rows, int cols, int layout"
INTERNAL = {
    "_decode_into": f"({_PLAIN}, Tensor(a!) out) -> ()",
    "_decode_rows_words": f"(Tensor ids, {_PLAIN}) -> Tensor",
    "_decode_rows_native": f"(Tensor ids, {_PLAIN}) -> Tensor",  # CPU: of the coded dtype
    "_decode_then_linear": PUBLIC["decode_linear"],
    "_count_values": "(Tensor words, int cols, int format) -> Tensor",
    "_count_pairs": (
        "(Tensor words, int cols, int format, int tile_cols, int predictor, int pad_value) "
        "-> Tensor"
    ),
    "_encode_tiles": (
        "(Tensor words, Tensor pairs, Tensor freqs, int cols, int format, int tile_cols, "
        "int predictor, int pad_value, int window_base, int scale_bits) "
        "-> (Tensor, Tensor, Tensor)"
    ),
    # A matrix of bf16 in any coding as coding fixed: plane, list, ends. `bases`: int32 [segments],
    # on the CPU. _fixed_of and _lying_tile are what the codec calls, the other two are kernels.
    "_fixed_of": f"({_CODED}, Tensor bases, int tile_cols) -> (Tensor, Tensor, Tensor)",
    "_to_fixed": f"({_PLAIN}, Tensor bases, int tile_cols) -> (Tensor, Tensor, Tensor)",
    "_lying_tile": f"({_CODED}) -> int",  # the first, or -1
    "_check_fixed": f"({_PLAIN}) -> int",  # the same + 1
    "_crc32": "(Tensor bytes) -> int",  # CPU: zlib's, of uint8 [n]
    "_isa": "() -> str",
    "_select_isa": "(str name) -> bool",
    "_available_isas": "() -> str",
    "_set_gemm_from": "(int rows) -> int",  # returns the one before
    "_has_code": "(int device) -> bool",  # CUDA: whether the library runs on that GPU
    "_set_check": "(bool on) -> bool",  # CUDA: raise where streams are corrupt; as above
}

# Kept for the life of the process: a Library that is collected takes its ops along.
LIBRARY = Library("codecllm", "DEF")

for _name, _schema in {**PUBLIC, **INTERNAL}.items():
    LIBRARY.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
