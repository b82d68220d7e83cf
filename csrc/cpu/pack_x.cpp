// Which path x takes, and x in the order in which decoded tiles meet it.
#include <string.h>

#include <algorithm>

#include "kernels.h"

namespace codecllm {

bool packs_bf16(const Kernels& kernels, const CodedView& view, Dtype dtype) {
  bool pairs_are_bf16 = false;
  with_format(view.format, [&](auto f) { pairs_are_bf16 = kSameKind<decltype(f), Bf16>; });
  return kernels.bf16_dot && pairs_are_bf16 && dtype == Dtype::bf16;
}

// ---- the path -----------------------------------------------------------------------------------

static Exponents exponents_bf16(const uint16_t* x, int64_t n) {
  uint16_t largest = 0, smallest = 0xffff;
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t magnitude = uint16_t(x[i] & 0x7fff);
    largest = std::max(largest, magnitude);
    smallest = std::min(smallest, uint16_t(magnitude - 1));  // zero becomes the largest
  }
  return {largest >> 7, (smallest + 1) >> 7};
}

template <class F>
static Exponents exponents_of(const void* x, int64_t begin, int64_t end) {
  uint32_t largest = 0, smallest = 0xffffffff;
  for (int64_t i = begin; i < end; ++i) {
    const uint32_t magnitude = bits_from_float(load_float<F>(x, i)) & 0x7fffffff;
    largest = std::max(largest, magnitude);
    smallest = std::min(smallest, magnitude - 1);
  }
  return {int(largest >> 23), int((uint64_t(smallest) + 1) >> 23)};
}

Exponents exponents(Dtype dtype, const void* x, int64_t begin, int64_t end) {
  if (dtype == Dtype::bf16) return exponents_bf16((const uint16_t*)x + begin, end - begin);
  Exponents found;
  with_activation(dtype, [&](auto f) { found = exponents_of<decltype(f)>(x, begin, end); });
  return found;
}

void Exponents::merge(const Exponents& other) {
  largest = std::max(largest, other.largest);
  smallest = std::min(smallest, other.smallest);
}

// The plane of coding fixed has weights times 2^-window_base, from 2^-126 to 2^-111: x is scaled to
// be as large as it can. Products are then at least 2^-102 where x does not span more than 2^100,
// so that a flushed sum (2^-126) is no more than their last place. False: x has inf, NaN,
// subnormals, or spans more.
static bool scale_of_x(const Exponents& found, int& exponent) {
  constexpr int kSpan = 100, kTop = 254;
  if (found.all_zero()) return true;
  if (found.largest > kTop || found.smallest == 0 || found.largest - found.smallest > kSpan)
    return false;
  exponent = kTop - found.largest;
  return true;
}

static bool few(const Kernels& kernels, const CodedView& view, Dtype dtype, int64_t m) {
  return m <= (packs_bf16(kernels, view, dtype) ? kRegisterRows : kFloatRegisterRows);
}

bool may_scale_x(const Kernels& kernels, const CodedView& view, Dtype dtype, int64_t m) {
  return view.coding == Coding::fixed && kernels.simd &&
         (packs_bf16(kernels, view, dtype) || few(kernels, view, dtype, m));
}

LinearPath choose_path(const Kernels& kernels, const CodedView& view, Dtype dtype, int64_t m,
                       const Exponents& of_x, int& x_exponent) {
  x_exponent = 0;
  if (!may_scale_x(kernels, view, dtype, m)) return LinearPath::tiles;
  if (scale_of_x(of_x, x_exponent))
    return few(kernels, view, dtype, m) ? LinearPath::fixed_registers : LinearPath::fixed_scaled;
  return packs_bf16(kernels, view, dtype) ? LinearPath::fixed_blocks : LinearPath::tiles;
}

// ---- packing ------------------------------------------------------------------------------------

int64_t packed_bytes(LinearPath path, int64_t m, int64_t k, bool as_bf16) {
  return m * packed_cols(path, k) * (as_bf16 ? 2 : 4);
}

typedef uint16_t u16x8 __attribute__((vector_size(16)));

// Up to eight columns from element `from` of x on, the rest zeros.
static inline void pack_bf16(const void* x, int64_t from, int columns, uint16_t exponent,
                             uint16_t* out) {
  u16x8 eight = {};
  if (columns == 8)
    memcpy(&eight, (const uint16_t*)x + from, 16);
  else
    memcpy(&eight, (const uint16_t*)x + from, size_t(columns) * 2);
  const u16x8 numbers = (u16x8)((eight & 0x7fff) != 0);
  eight += numbers & uint16_t(exponent << 7);
  memcpy(out, &eight, 16);
}

template <class F>
static inline void pack_float(const void* x, int64_t from, int columns, const float (&factor)[2],
                              float* out) {
  for (int i = 0; i < 8; ++i)
    out[i % 2 * 4 + i / 2] = i < columns ? load_float<F>(x, from + i) * factor[0] * factor[1] : 0.f;
}

void pack_x(LinearPath path, const void* x, Dtype dtype, int64_t m, int64_t k, bool as_bf16,
            int exponent, int64_t begin, int64_t end, void* out) {
  const int64_t cols = packed_cols(path, k);
  const int half = exponent / 2;
  const float factor[2] = {float_from_bits(uint32_t(127 + half) << 23),
                           float_from_bits(uint32_t(127 + exponent - half) << 23)};
  with_activation(dtype, [&](auto f) {
    int rows = 0;
    for (int64_t first = 0; first < end; first += rows) {
      rows = block_rows(path, first, m);
      if (first < begin) continue;
      for (int row = 0; row < rows; ++row)
        for (int64_t col = 0; col < cols; col += 8) {
          const int64_t left = k - col, from = (first + row) * k + col;
          const int64_t to = first * cols + col * rows + 8 * row;
          const int columns = int(left < 0 ? 0 : left < 8 ? left : 8);
          if (as_bf16)
            pack_bf16(x, from, columns, uint16_t(exponent), (uint16_t*)out + to);
          else
            pack_float<decltype(f)>(x, from, columns, factor, (float*)out + to);
        }
    }
  });
}

}  // namespace codecllm
