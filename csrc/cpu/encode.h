// The encoder. Planning (window, pairs, frequencies) is done in codecllm_ops/codec; this counts and
// codes. No torch.
#pragma once
#include <vector>

#include "../core/format.h"

namespace codecllm {

// A dense matrix to encode.
struct DenseView {
  const uint8_t* words;  // [rows, cols], row-major
  int64_t rows, cols;
  int format, tile_cols, predictor;
  uint32_t pad_value;  // coded value of padding cells; also the seed of predictor `left`

  ColumnTiles column_tiles() const { return {cols, tile_cols}; }
};

// One symbol of the encoder; index 32 * i0 + i1 of docs/format.md, 1023 the escape.
struct EncoderSymbol {
  uint64_t reciprocal;  // floor(2^64 / freq) + 1; freq 1: 2^64 - 1
  uint32_t bias;        // start; freq 1: start + 2^scale_bits - 1
  uint32_t complement;  // 2^scale_bits - freq
  uint64_t emit_from;   // freq << (32 - scale_bits)
};

struct EncoderTables {
  EncoderSymbol symbols[1024];
  std::vector<uint16_t> symbol_of;  // [65536], by r0 + 256 * r1

  EncoderTables(const int64_t* pairs, const int64_t* freqs, int64_t n_pairs, uint32_t window_base,
                int scale_bits);
};

// counts[2^coded_bits] += coded values of rows [begin, end).
void count_values(const DenseView&, int64_t begin, int64_t end, int64_t* counts);

// counts[65536] += residual pairs r0 + 256 * r1 of tile rows [begin, end), padding included.
void count_pairs(const DenseView&, int64_t begin, int64_t end, int64_t* counts);

// Codes one row of tiles: appends to `stream` (tiles aligned), fills raw [row of tiles] and
// lengths [col_tiles, 32].
void encode_tile_row(const DenseView&, const EncoderTables&, int64_t tile_row,
                     std::vector<uint16_t>& stream, uint8_t* raw, int32_t* lengths);

}  // namespace codecllm
