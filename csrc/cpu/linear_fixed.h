// linear for the coding fixed. Three ways, by the number of rows of x and what is in x
// (choose_path in pack_x.cpp):
//
//   fixed_registers  plane, a unit of 16 rows x 64 columns         x, packed, times 2^x_exponent
//                    | load_quads, split_group: registers            | 16 bytes: 8 columns
//                    v                                               v
//                  halves, the weights times 2^-window_base  *  columns, repeated for every row
//                                         '-------.  .--------------'
//                                                  v v
//                  sums [chunk][row of x][row half] in registers, over a tile; at the end of a row
//                  of tiles the lanes of each row are added, times 2^(window_base - x_exponent),
//                  and the listed weights times x. Nothing is written but the output.
//
//   fixed_scaled     the same numbers, but the halves of one tile go to scratch, and 16 rows of the
//                    weight meet up to 6 rows of x in 24 registers. While one tile is multiplied,
//                    the plane of the next one is fetched.
//
//   fixed_blocks     as fixed_scaled with real words in scratch, the list written over them, and x
//                    as it is: inf, NaN and all.
//
// Up to 12 rows in registers, decoded again for each block of x, was slower than scratch (12 rows:
// 2.8 instead of 2.5 ms, one thread); with 12 rows the compiler spills a lot.
//
// Traps:
//   * Fetches go to the second-level cache. Into the first one, 1 to 3 units ahead, they push out
//     what is in use: 2.2 instead of 1.3 ms at 4 rows of x (4096 x 4096, one thread).
//   * The last unit of a tile may be narrower. fixed_registers widens it, and meets columns of x
//     that are not its own with weights that are zero: they must be finite, as they are on that
//     path. The others multiply only the groups that a tile has.
#pragma once
#include "blocks.h"
#include "to_float.h"

namespace codecllm {
namespace {

#if defined(__AVX2__)
// Sums of a row of tiles for one row of x: [row half][lane], four lanes to a row.
struct alignas(64) LaneSums {
  float at[2][kLanes];
};

// Adds the four lanes of each row.
CLLM_INLINE void add_lanes(const LaneSums& sums, float (&rows)[kTileRows]) {
  for (int row = 0; row < kTileRows; row += V::W) {
    V::reg lanes[4];
    V::load_quads((const uint8_t*)&sums + 16 * row, lanes);
    store_f32v(rows + row, ((f32v)lanes[0] + (f32v)lanes[1]) + ((f32v)lanes[2] + (f32v)lanes[3]));
  }
}

// Adds the bias, writes out[x_row, rows of the tile].
inline void store_rows(const TilePlace& tile, const LinearArgs& args, int64_t x_row,
                       float (&rows)[kTileRows]) {
  if (args.bias)
    for (int row = 0; row < tile.rows; ++row)
      rows[row] += load_float(args.bias, args.dtype, tile.out_row + row);
  const int64_t to = x_row * args.n + tile.out_row;
  if (args.dtype == Dtype::bf16 && tile.rows == kTileRows) {
    typedef uint16_t u16v __attribute__((vector_size(2 * kFloats)));
    for (int row = 0; row < kTileRows; row += kFloats) {
      const u16v words = __builtin_convertvector(round_to<Bf16>(load_f32v(rows + row)), u16v);
      memcpy((uint16_t*)args.out + to + row, &words, sizeof words);
    }
    return;
  }
  for (int row = 0; row < tile.rows; ++row) store_float(args.out, args.dtype, to + row, rows[row]);
}

CLLM_INLINE void fetch_lines(const uint8_t* from, int lines) {
  for (int i = 0; i < lines; ++i) __builtin_prefetch(from + 64 * i, 0, 2);
}

// ---- few rows of x: products --------------------------------------------------------------------

// 2^exponent, -1022 to 1023.
CLLM_INLINE double power_of_two(int exponent) {
  const uint64_t bits = uint64_t(1023 + exponent) << 52;
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// x as floats: of 8 columns first the even, then the odd ones.
struct FloatProducts {
  using X = float;
  static constexpr int kRows = kFloatRegisterRows;
  static CLLM_INLINE int place(int col) { return col % 2 * 4 + col / 2; }  // in packed x
  // x as it came; exact.
  struct Unscale {
    double factor;
    explicit Unscale(int exponent) : factor(power_of_two(-exponent)) {}
    CLLM_INLINE float operator()(X x) const { return float(double(x) * factor); }
  };
  struct Numbers {
    f32v even, odd;
  };
  static CLLM_INLINE Numbers weights(V::reg pair) {
    return {(f32v)((u32v)pair << 16), (f32v)((u32v)pair & 0xffff0000u)};
  }
  static CLLM_INLINE Numbers columns(const X* x) { return {repeat4(x), repeat4(x + 4)}; }
  static CLLM_INLINE void add(f32v& sum, const Numbers& w, const Numbers& x) {
    sum += w.even * x.even;
    sum += w.odd * x.odd;
  }
};

#ifdef __AVX512BF16__
struct Bf16Products {
  using X = uint16_t;
  static constexpr int kRows = kRegisterRows;
  static CLLM_INLINE int place(int col) { return col; }
  struct Unscale {
    uint32_t exponent;
    explicit Unscale(int n) : exponent(uint32_t(n) << 23) {}
    CLLM_INLINE float operator()(X x) const {
      const uint32_t bits = uint32_t(x) << 16;
      return float_from_bits(bits & 0x7fffffff ? bits - exponent : bits);
    }
  };
  using Numbers = __m512bh;
  static CLLM_INLINE Numbers weights(V::reg pair) { return (Numbers)pair; }
  static CLLM_INLINE Numbers columns(const X* x) {
    return (Numbers)_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)x));
  }
  static CLLM_INLINE void add(f32v& sum, Numbers w, Numbers x) {
    sum = (f32v)_mm512_dpbf16_ps((__m512)sum, w, x);
  }
};
#endif

// Chunk c of the lanes of a unit times Rows rows of x: [half group][row][8].
template <class P, int Rows>
CLLM_INLINE void multiply_chunk(const uint8_t* unit, int c, const typename P::X* x,
                                f32v (&sum)[Rows][2]) {
  for_pairs(unit, c, kFixedUnit, [&](int g, const V::reg(&pairs)[kPairsPerGroup]) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const auto upper = P::weights(pairs[2 * half]), lower = P::weights(pairs[2 * half + 1]);
      const typename P::X* at = x + (2 * g + half) * 8 * Rows;
#pragma GCC unroll 12
      for (int row = 0; row < Rows; ++row) {
        const auto columns = P::columns(at + 8 * row);
        P::add(sum[row][0], upper, columns);
        P::add(sum[row][1], lower, columns);
      }
    }
  });
}

template <int Rows>
using FewSums = f32v[kChunks][Rows][2];  // [chunk][row of x][row half]

// One by one: a memcpy would take the array's address and keep it out of registers.
template <int N>
CLLM_INLINE void copy_sums(const f32v* from, f32v* to) {
#pragma GCC unroll 32
  for (int i = 0; i < N; ++i) to[i] = from[i];
}

// How far ahead of its use the plane is fetched. Measured with one thread: 6 KiB is too little, 24
// no better.
constexpr int kFetchAhead = 12288;

// Units in a row times Rows rows of x. Where sums of all chunks have no room in registers, one
// chunk after the other: the units are in the first-level cache by then.
template <class P, int Rows>
__attribute__((noinline)) void multiply_units(const uint8_t* unit, int units,
                                              const typename P::X* x, FewSums<Rows>& sums) {
  constexpr int kSumsInRegisters = kFloats == 16 ? 8 : 4;  // with 16, 1.7 instead of 1.5 ms
  constexpr int kTogether = 2 * Rows * kChunks <= kSumsInRegisters ? kChunks : 1;
  for (int first = 0; first < kChunks; first += kTogether) {
    f32v sum[kTogether][Rows][2];
    copy_sums<2 * Rows * kTogether>(&sums[first][0][0], &sum[0][0][0]);
    const uint8_t* at = unit;
    const typename P::X* x_at = x;
    for (int u = 0; u < units; ++u, at += kFixedUnitBytes, x_at += kFixedUnitCols * Rows) {
      fetch_lines(at + kFetchAhead + first * kFixedUnitBytes / kChunks / 64 * 64,
                  kFixedUnitBytes / 64 * kTogether / kChunks);
#pragma GCC unroll 4
      for (int c = 0; c < kTogether; ++c) multiply_chunk<P, Rows>(at, first + c, x_at, sum[c]);
    }
    copy_sums<2 * Rows * kTogether>(&sum[0][0][0], &sums[first][0][0]);
  }
}

// ---- few rows of x: the kernel ------------------------------------------------------------------

// The listed weights of a tile times a block of x, where their columns are [begin, end):
// sums [row of x][row of the tile] += these.
template <class P>
CLLM_INLINE void add_listed(const FixedTile& tile, int begin, int end, const typename P::X* x,
                            int rows, typename P::Unscale unscale, float (*sums)[kTileRows]) {
  for (int64_t i = 0; i < tile.list.count; ++i) {
    const FixedEntry e = tile.list[i];
    if (e.col() < begin || e.col() >= end) continue;
    const float weight = word_value<Bf16>(e.word());
    const typename P::X* eight = x + e.col() / 8 * 8 * rows + P::place(e.col() % 8);
    for (int row = 0; row < rows; ++row) sums[row][e.row()] += weight * unscale(eight[8 * row]);
  }
}

// A tile times all rows of x.
template <class P, int Rows>
inline void multiply_tile(const FixedTile& tile, const void* x_block, int x_exponent,
                          f32v* sums_of_block, float (*listed)[kTileRows]) {
  FewSums<Rows>& sums = *(FewSums<Rows>*)sums_of_block;
  const typename P::X* x = (const typename P::X*)x_block + tile.first_col * Rows;
  const int units = tile.groups / kFixedUnit, left = tile.groups % kFixedUnit;
  multiply_units<P, Rows>(tile.plane, units, x, sums);
  if (left) {
    uint8_t last[kFixedUnitBytes];
    widen_unit(tile.plane + int64_t(units) * kFixedUnitBytes, left, last);
    multiply_units<P, Rows>(last, 1, x + units * kFixedUnitCols * Rows, sums);
  }
  add_listed<P>(tile, 0, tile.cols, x, Rows, typename P::Unscale(x_exponent), listed);
}

using MultiplyTile = void (*)(const FixedTile&, const void*, int, f32v*, float (*)[kTileRows]);
template <class P, int... Less>
inline MultiplyTile multiply_tile_of(int rows, std::integer_sequence<int, Less...>) {
  static constexpr MultiplyTile kAll[] = {multiply_tile<P, Less + 1>...};
  return kAll[rows - 1];
}

// The sums of one row of x to its output.
CLLM_INLINE void finish_row(const FixedTile& tile, const LinearArgs& args, int64_t x_row,
                            const LaneSums& sums, double factor, const float* listed) {
  float rows[kTileRows];
  add_lanes(sums, rows);
  for (int row = 0; row < kTileRows; ++row)
    rows[row] = float(double(rows[row]) * factor) + listed[row];
  store_rows(tile, args, x_row, rows);
}

// The power of two that undoes the scales of weights and x.
CLLM_INLINE double sum_factor(const FixedTile& tile, const LinearArgs& args) {
  return power_of_two(int(tile.window_base & 0xff) - args.x_exponent);
}

template <class P>
inline Status linear_registers(const CodedView& view, int64_t begin, int64_t end,
                               const LinearArgs& args) {
  const int rows = int(args.m);
  const MultiplyTile multiply =
      multiply_tile_of<P>(rows, std::make_integer_sequence<int, P::kRows>());
  int64_t segment = 0;
  FixedTile tile;
  for (int64_t tile_row = begin; tile_row < end; ++tile_row) {
    f32v sums[2 * kChunks * P::kRows] = {};
    float listed[P::kRows][kTileRows] = {};
    for (int64_t col = 0; col < view.col_tiles; ++col) {
      if (!locate_fixed(view, tile_row, col, segment, tile))
        return {Corruption::index, tile.number};
      multiply(tile, args.x, args.x_exponent, sums, listed);
    }
    for (int row = 0; row < rows; ++row) {
      LaneSums lanes;
      for (int c = 0; c < kChunks; ++c)
        for (int half = 0; half < 2; ++half)
          store_f32v(lanes.at[half] + c * V::W, sums[(c * rows + row) * 2 + half]);
      finish_row(tile, args, row, lanes, sum_factor(tile, args), listed[row]);
    }
  }
  return {};
}

inline Status linear_fixed_registers(const CodedView& view, int64_t begin, int64_t end,
                                     const LinearArgs& args) {
#ifdef __AVX512BF16__
  if (args.x_is_bf16) return linear_registers<Bf16Products>(view, begin, end, args);
#endif
  return linear_registers<FloatProducts>(view, begin, end, args);
}

// ---- blocks of x --------------------------------------------------------------------------------

#ifdef __AVX512BF16__
// sums [row of x] += words [half group][row half][lane] times x [half group][row][8]. Meanwhile
// `lines` lines per half group are fetched from `next` on.
template <int Rows>
inline void multiply_block(const uint32_t* words, int half_groups, const uint16_t* x,
                           LaneSums* sums, const uint8_t* next, int lines) {
  constexpr int kRegisters = 2 * kChunks;  // of a half group
  f32v sum[Rows][kRegisters];
  copy_sums<Rows * kRegisters>((const f32v*)sums, &sum[0][0]);
  for (int h = 0; h < half_groups; ++h, words += 2 * kLanes, x += 8 * Rows, next += 64 * lines) {
    fetch_lines(next, lines);
    __m512bh w[kRegisters];
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) w[i] = (__m512bh)_mm512_load_si512(words + 16 * i);
#pragma GCC unroll 8
    for (int row = 0; row < Rows; ++row) {
      const __m512bh columns = Bf16Products::columns(x + 8 * row);
#pragma GCC unroll 4
      for (int i = 0; i < kRegisters; ++i) Bf16Products::add(sum[row][i], w[i], columns);
    }
  }
  copy_sums<Rows * kRegisters>(&sum[0][0], (f32v*)sums);
}

using MultiplyBlock = void (*)(const uint32_t*, int, const uint16_t*, LaneSums*, const uint8_t*,
                               int);
constexpr MultiplyBlock kMultiplyBlock[kBlockRows + 1] = {
    nullptr,           multiply_block<1>, multiply_block<2>, multiply_block<3>,
    multiply_block<4>, multiply_block<5>, multiply_block<6>};

// Part of a tile: some units, decoded. Wider ones load and store sums less often.
struct Part {
  int first_group, groups;
};
constexpr int kPartGroups = 8 * kFixedUnit;

// Words [group][j][lane] of a part, always whole units: the scratch of two tiles has room. Lies of
// the plane (code 0 with a mantissa) are what check_fixed looks for: here they are subnormals.
template <bool Scaled>
inline void decode_part(const FixedTile& tile, Part part, uint32_t* words) {
  const __m512i code = _mm512_set1_epi32(int(kFixedCode));
  const __m512i base = _mm512_set1_epi16(short(tile.window_base << kFixedCodeShift));
  const uint8_t* unit = tile.plane + int64_t(part.first_group) * kFixedGroupBytes;
  uint8_t last[kFixedUnitBytes];
  for (int group = 0; group < part.groups; group += kFixedUnit, unit += kFixedUnitBytes) {
    const uint8_t* from = unit;
    if (part.groups - group < kFixedUnit) {
      widen_unit(unit, part.groups - group, last);
      from = last;
    }
    uint32_t* to = words + group * kPairsPerGroup * kLanes;
    for (int c = 0; c < kChunks; ++c)
      for_pairs(from, c, kFixedUnit, [&](int g, const V::reg(&pairs)[kPairsPerGroup]) {
#pragma GCC unroll 4
        for (int j = 0; j < kPairsPerGroup; ++j) {
          V::reg out = pairs[j];
          if (!Scaled)
            out = _mm512_mask_add_epi16(out, _mm512_test_epi16_mask(out, code), out, base);
          V::store(to + (kPairsPerGroup * g + j) * kLanes + c * V::W, out);
        }
      });
  }
  if (Scaled) return;
  const int first_col = kGroupCols * part.first_group, cols = kGroupCols * part.groups;
  for (int64_t i = 0; i < tile.list.count; ++i) {
    const FixedEntry e = tile.list[i];
    const int col = e.col() - first_col;
    if (col < 0 || col >= cols) continue;
    const uint16_t word = e.word();
    memcpy((uint8_t*)(words + pair_at(e.row(), col)) + 2 * (col & 1), &word, sizeof word);
  }
}

// A decoded part times all rows of x; of scaled ones also the listed weights, while the block of x
// is near. The plane behind the part is fetched meanwhile, as much of it as the part has.
template <bool Scaled>
inline void multiply_part(const FixedTile& tile, Part part, const uint32_t* words,
                          const LinearArgs& args, int64_t packed, LaneSums* sums,
                          float (*listed)[kTileRows]) {
  const int half_groups = 2 * part.groups;
  const int lines = part.groups * kFixedGroupBytes / 64;
  const int per_half_group = int(ceil_div(lines, half_groups * ceil_div(args.m, kBlockRows)));
  const int begin = kGroupCols * part.first_group, end = begin + kGroupCols * part.groups;
  const uint8_t* next = tile.plane + int64_t(part.first_group + part.groups) * kFixedGroupBytes;
  const Bf16Products::Unscale unscale(args.x_exponent);
  for (int64_t first = 0, fetched = 0; first < args.m;) {
    const int rows = block_rows(LinearPath::fixed_blocks, first, args.m);
    const uint16_t* x = (const uint16_t*)args.x + first * packed + tile.first_col * rows;
    kMultiplyBlock[rows](words, half_groups, x + begin * rows, sums + first, next + 64 * fetched,
                         fetched < lines ? per_half_group : 0);
    if (Scaled) add_listed<Bf16Products>(tile, begin, end, x, rows, unscale, listed + first);
    fetched += int64_t(per_half_group) * half_groups;
    first += rows;
  }
}

template <bool Scaled>
inline Status linear_fixed_blocks(const CodedView& view, int64_t begin, int64_t end,
                                  const LinearArgs& args, uint8_t* at_scratch) {
  const Scratch scratch(view, at_scratch);
  uint32_t* words = scratch.pairs[0];
  LaneSums* sums = (LaneSums*)scratch.sums;
  float (*listed)[kTileRows] =
      (float (*)[kTileRows])(sums + args.m);  // where a second tile's sums go
  const int64_t packed = packed_cols(LinearPath::fixed_blocks, view.cols);
  int64_t segment = 0;
  FixedTile tile;
  for (int64_t tile_row = begin; tile_row < end; ++tile_row) {
    memset(sums, 0, size_t(args.m) * sizeof *sums);
    if (Scaled) memset(listed, 0, size_t(args.m) * sizeof *listed);
    for (int64_t col = 0; col < view.col_tiles; ++col) {
      if (!locate_fixed(view, tile_row, col, segment, tile))
        return {Corruption::index, tile.number};
      for (int group = 0; group < tile.groups; group += kPartGroups) {
        const int left = tile.groups - group;
        const Part part = {group, left < kPartGroups ? left : kPartGroups};
        decode_part<Scaled>(tile, part, words);
        multiply_part<Scaled>(tile, part, words, args, packed, sums, listed);
      }
    }
    for (int64_t x_row = 0; x_row < args.m; ++x_row) {
      if (Scaled) {
        finish_row(tile, args, x_row, sums[x_row], sum_factor(tile, args), listed[x_row]);
        continue;
      }
      float rows[kTileRows];
      add_lanes(sums[x_row], rows);
      store_rows(tile, args, x_row, rows);
    }
  }
  return {};
}
#endif

#endif  // __AVX2__

}  // namespace
}  // namespace codecllm
