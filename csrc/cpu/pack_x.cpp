// x in the order in which decoded tiles meet it.
#include <string.h>

#include "kernels.h"

namespace codecllm {

bool packs_bf16(const Kernels& kernels, const CodedView& view, Dtype dtype) {
  bool pairs_are_bf16 = false;
  with_format(view.format, [&](auto f) { pairs_are_bf16 = kSameKind<decltype(f), Bf16>; });
  return kernels.bf16_dot && pairs_are_bf16 && dtype == Dtype::bf16;
}

static int64_t padded(int64_t k) { return ceil_div(k, kGroupCols) * kGroupCols; }

int64_t packed_bytes(int64_t m, int64_t k, bool as_bf16) {
  return m * padded(k) * (as_bf16 ? 2 : 4);
}

// Up to eight columns from element `from` of x on, the rest zeros.
static void pack_bf16(const void* x, int64_t from, int columns, uint16_t* out) {
  memset(out, 0, 16);
  memcpy(out, (const uint16_t*)x + from, size_t(columns) * 2);
}

template <class F>
static void pack_float(const void* x, int64_t from, int columns, float* out) {
  for (int i = 0; i < 8; ++i)
    out[i % 2 * 4 + i / 2] = i < columns ? load_float<F>(x, from + i) : 0.f;
}

void pack_x(const void* x, Dtype dtype, int64_t m, int64_t k, bool as_bf16, void* out) {
  with_activation(dtype, [&](auto f) {
    for (int64_t first = 0; first < m;) {
      const int rows = block_rows(first, m);
      for (int row = 0; row < rows; ++row)
        for (int64_t col = 0; col < padded(k); col += 8) {
          const int64_t left = k - col, from = (first + row) * k + col;
          const int64_t to = first * padded(k) + col * rows + 8 * row;
          const int columns = int(left < 0 ? 0 : left < 8 ? left : 8);
          if (as_bf16)
            pack_bf16(x, from, columns, (uint16_t*)out + to);
          else
            pack_float<decltype(f)>(x, from, columns, (float*)out + to);
        }
      first += rows;
    }
  });
}

}  // namespace codecllm
