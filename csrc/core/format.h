// Numbers of docs/format.md that kernels need, for host and device. No torch, no CUDA runtime.
// tests/format/test_constants.py equates them with codecllm_ops/format.
#pragma once
#include <stdint.h>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define CLLM_HD __host__ __device__ __forceinline__
#else
// Always inline: the CPU kernels compile these headers several times with different instruction
// sets, and an out-of-line copy could be the one that this machine cannot run.
#define CLLM_HD inline __attribute__((always_inline))
#endif

namespace codecllm {

constexpr int kLanes = 32;
constexpr int kTileRows = 16;
constexpr int kGroupCols = 16;
constexpr int kPairsPerGroup = 4;
constexpr int kMaxTileCols = 16384;
constexpr int kStreamAlign = 16;  // bytes
constexpr int kStreamPadWords = 8;
constexpr int kMinScaleBits = 8, kMaxScaleBits = 11;
constexpr int kEscapeIndex = 31;
constexpr int kTableHeader = 8;  // int32 before the slots of a runtime table
constexpr int kMaxPlanes = 4;

struct Plane {
  uint32_t mask = 0;  // of a pair register: the 16-bit mask of section 5, twice
  int bits = 0;
  bool low_half = false;
};

struct WeightFormat {
  int id, word_bits, coded_shift, coded_bits;
  uint32_t flip;
  Plane planes[kMaxPlanes] = {};
  int n_planes = 0;

  constexpr WeightFormat(int id, int word_bits, int coded_shift, int coded_bits, uint32_t flip = 0)
      : id(id),
        word_bits(word_bits),
        coded_shift(coded_shift),
        coded_bits(coded_bits),
        flip(flip * 0x10001u) {
    // Greedy split (section 5): a plane takes the lowest bit of every residue modulo its width.
    uint32_t half = (1u << (word_bits < 16 ? word_bits : 16)) - 1;
    uint32_t raw = half & ~(((1u << coded_bits) - 1) << coded_shift);
    for (int bits = 16; bits >= 1; bits /= 2) {
      for (;;) {
        uint32_t residues = 0, mask = 0;
        for (int position = 0; position < 16; ++position) {
          uint32_t residue = 1u << (position % bits);
          if ((raw >> position & 1) && !(residues & residue)) {
            residues |= residue;
            mask |= 1u << position;
          }
        }
        if (residues != (1u << bits) - 1) break;
        planes[n_planes++] = Plane{mask * 0x10001u, bits, false};
        raw &= ~mask;
      }
    }
    if (word_bits == 32) planes[n_planes++] = Plane{0xffffffffu, 16, true};
  }

  CLLM_HD constexpr int word_bytes() const { return word_bits / 8; }
  CLLM_HD constexpr uint32_t value_mask() const { return (1u << coded_bits) - 1; }
};

struct Bf16 {
  static constexpr WeightFormat fmt{1, 16, 7, 8};
};
struct Fp16 {
  static constexpr WeightFormat fmt{2, 16, 10, 5};
};
struct Fp32 {
  static constexpr WeightFormat fmt{3, 32, 7, 8};
};
struct Fp8E4m3 {
  static constexpr WeightFormat fmt{4, 8, 3, 4};
};
struct Fp8E5m2 {
  static constexpr WeightFormat fmt{5, 8, 2, 5};
};
struct Int8 {
  static constexpr WeightFormat fmt{6, 8, 4, 4, 0x80};
};

// Calls f with the format of that id as a type; false if there is none.
template <class F>
CLLM_HD bool with_format(int id, F&& f) {
  switch (id) {
    case Bf16::fmt.id:
      f(Bf16{});
      return true;
    case Fp16::fmt.id:
      f(Fp16{});
      return true;
    case Fp32::fmt.id:
      f(Fp32{});
      return true;
    case Fp8E4m3::fmt.id:
      f(Fp8E4m3{});
      return true;
    case Fp8E5m2::fmt.id:
      f(Fp8E5m2{});
      return true;
    case Int8::fmt.id:
      f(Int8{});
      return true;
    default:
      return false;
  }
}

CLLM_HD constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Containers of one lane in one plane of a tile.
CLLM_HD constexpr int containers(int plane_bits, int groups) {
  return (kPairsPerGroup * groups * plane_bits + 15) / 16;
}

CLLM_HD constexpr int64_t raw_tile_bytes(const WeightFormat& f, int groups) {
  int64_t n = 0;
  for (int i = 0; i < f.n_planes; ++i) n += containers(f.planes[i].bits, groups);
  return 4 * kLanes * n;
}

// 32-bit word of container i of a lane inside a plane: quads, so that a lane reads 16 bytes.
CLLM_HD constexpr int container_at(int i, int lane, int count) {
  int quad = i / 4, left = count - 4 * quad;
  return 4 * kLanes * quad + (left < 4 ? left : 4) * lane + i % 4;
}

// Row in the tile and first column in the group of pair j of a lane (the A fragment of m16n8k16).
CLLM_HD constexpr int pair_row(int lane, int j) { return lane / 4 + 8 * (j & 1); }
CLLM_HD constexpr int pair_col(int lane, int j) { return 2 * (lane % 4) + 8 * (j >> 1); }

}  // namespace codecllm
