"""Numbers of the coding `fixed` (docs/format.md, section 13), for all that is written in Python.

csrc/core/format.h has them for C++; tests/format/test_constants.py compares.
"""

from __future__ import annotations

FIXED_CODES = 15  # exponents in the window
MAX_FIXED_BASE = 254 - FIXED_CODES
MAX_FIXED_TILE_COLS = 4096  # the list has 12 bits for a column of a tile
LISTED_BYTES = 4
FIXED_PLANE_BITS = (12,)
FIXED_CONTAINERS = 3  # of a lane and group
FIXED_UNIT = 4  # groups whose containers are whole quads

FIXED_PLACE = 0x87FF87FF  # sign, code and mantissa of both halves
FIXED_CODE = 0x07800780
# Bits of pair 3 that each container holds, and how far they are rotated to the left of their place.
FIXED_SPREAD = ((0x07800780, 4), (0x00780078, 8), (0x80078007, 12))
