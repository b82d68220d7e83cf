// From op arguments to a CodedView that kernels may trust: every size is checked here, so that no
// bytes can send a kernel outside its tensors (offsets inside the index are checked per tile).
#pragma once
#include <algorithm>

#include "../core/coded_view.h"
#include "../core/layout.h"
#include "compat.h"

namespace codecllm {

using torch::headeronly::ScalarType;
using torch::headeronly::toString;
using torch::stable::Tensor;

// The coded arguments of an op, in the order of its schema (codecllm_ops/codec/operand.py).
struct Operand {
  const Tensor &stream, &raw, &index, &table;
  int64_t rows, cols;
  int64_t layout_word;
  Layout layout;

  Operand(const Tensor& stream, const Tensor& raw, const Tensor& index, const Tensor& table,
          int64_t rows, int64_t cols, int64_t layout_word)
      : stream(stream),
        raw(raw),
        index(index),
        table(table),
        rows(rows),
        cols(cols),
        layout_word(layout_word),
        layout(layout_word) {}
};

// `like` gives the device: the CPU, or one of the GPUs.
inline void check_tensor(const Tensor& t, ScalarType dtype, int64_t dim, const char* op,
                         const char* name, const Tensor& like) {
  const bool same =
      like.is_cpu() ? t.is_cpu() : t.is_cuda() && t.get_device_index() == like.get_device_index();
  CLLM_CHECK(same, "codecllm::", op, ": ", name, " is not on the ",
             like.is_cpu() ? "CPU" : "same GPU", " like the others");
  CLLM_CHECK(t.scalar_type() == dtype, "codecllm::", op, ": ", name, " is ",
             toString(t.scalar_type()), ", not ", toString(dtype));
  CLLM_CHECK(t.dim() == dim, "codecllm::", op, ": ", name, " has ", t.dim(), " dimensions, not ",
             dim);
  CLLM_CHECK(t.is_contiguous(), "codecllm::", op, ": ", name, " is not contiguous");
}

inline int word_bytes(int format, const char* op) {
  int bytes = 0;
  bool known = with_format(format, [&](auto f) { bytes = decltype(f)::fmt.word_bytes(); });
  CLLM_CHECK(known, "codecllm::", op, ": unknown weight format id ", format);
  return bytes;
}

// The tile rows that a table on the CPU describes; it must describe `v.rows` rows.
inline int64_t tile_rows_of_table(const CodedView& v, const char* op) {
  int64_t row = 0, tile_rows = 0;
  for (int64_t s = 0; s < v.segments; ++s) {
    const uint32_t* h = v.segment(s);
    CLLM_CHECK(h[kFirstRow] == row && h[kFirstTileRow] == tile_rows, "codecllm::", op,
               ": corrupt table: segment ", s, " does not follow the one before it");
    row += h[kRows];
    tile_rows += ceil_div(h[kRows], kTileRows);
  }
  CLLM_CHECK(row == v.rows, "codecllm::", op, ": corrupt table: segments of ", row, " rows, not ",
             v.rows);
  return tile_rows;
}

// A table on a GPU is not read here: that would wait for the GPU. Kernels check what they take from
// it; the tile rows follow from the index.
inline int64_t tile_rows_of_index(const CodedView& v, int64_t records, const char* op) {
  const int64_t least = ceil_div(v.rows, kTileRows);
  if (v.cols == 0) return least;
  const int64_t tile_rows = records / v.col_tiles;
  CLLM_CHECK(v.segments >= (v.rows > 0) && tile_rows >= least &&
                 tile_rows < least + std::max<int64_t>(v.segments, 1),
             "codecllm::", op, ": corrupt index or table: ", tile_rows, " tile rows and ",
             v.segments, " segments for ", v.rows, " rows");
  return tile_rows;
}

inline bool tile_cols_exist(int64_t tile_cols, Coding coding) {
  const int most = coding == Coding::fixed ? kMaxFixedTileCols : kMaxTileCols;
  return tile_cols >= kGroupCols && tile_cols % kGroupCols == 0 && tile_cols <= most;
}

inline void check_rans_args(CodedView& v, const Layout& layout, const Tensor& index,
                            const char* op) {
  v.scale_bits = layout.scale_bits;
  v.len_bits = int(std::min<int64_t>(index.size(1), 1 << 20)) - 2;
  v.predictor = layout.predictor;
  CLLM_CHECK(v.scale_bits >= kMinScaleBits && v.scale_bits <= kMaxScaleBits, "codecllm::", op,
             ": corrupt layout: scale_bits ", v.scale_bits);
  CLLM_CHECK(v.len_bits >= 1 && v.len_bits <= 16, "codecllm::", op, ": corrupt index: records of ",
             index.size(1), " values");
  CLLM_CHECK(v.table_stride == kTableHeader + (int64_t(1) << v.scale_bits), "codecllm::", op,
             ": corrupt table: ", v.table_stride, " entries for scale_bits ", v.scale_bits);
}

inline void check_fixed_args(const CodedView& v, const Layout& layout, const Tensor& index,
                             const char* op) {
  CLLM_CHECK(layout.format == Bf16::fmt.id && layout.scale_bits == 0 && layout.predictor == 0 &&
                 layout.scale_kind == kNoScale,
             "codecllm::", op, ": corrupt layout: coding fixed is for bf16 alone");
  CLLM_CHECK(index.size(1) == 1, "codecllm::", op, ": corrupt index: records of ", index.size(1),
             " values");
  CLLM_CHECK(v.table_stride == kTableHeader, "codecllm::", op, ": corrupt table: ", v.table_stride,
             " entries of a segment");
  CLLM_CHECK(v.raw_bytes % kListedBytes == 0, "codecllm::", op, ": corrupt list: ", v.raw_bytes,
             " bytes");
}

// Checks everything but the contents of `index` and the streams.
inline CodedView coded_view(const Operand& coded, const char* op) {
  const Tensor &stream = coded.stream, &raw = coded.raw, &index = coded.index, &table = coded.table;
  const int64_t rows = coded.rows, cols = coded.cols;
  const Layout& layout = coded.layout;
  check_tensor(stream, ScalarType::Byte, 1, op, "stream", stream);
  check_tensor(raw, ScalarType::Byte, 1, op, "raw", stream);
  check_tensor(index, ScalarType::Int, 2, op, "index", stream);
  check_tensor(table, ScalarType::Int, 2, op, "table", stream);
  CLLM_CHECK(layout.known, "codecllm::", op, ": corrupt layout: unknown bits");
  // Fewer than 2^57 words: no product below can overflow.
  CLLM_CHECK(rows >= 0 && cols >= 0 && rows < INT32_MAX && cols < INT32_MAX &&
                 rows * cols < int64_t(1) << 57,
             "codecllm::", op, ": shape ", rows, " x ", cols);
  CodedView v = {};
  v.stream = stream.const_data_ptr<uint8_t>();
  v.stream_bytes = stream.numel();
  v.rows = rows;
  v.cols = cols;
  v.format = layout.format;
  v.coding = layout.coding;
  const int bytes = word_bytes(layout.format, op);
  if (layout.stored()) {
    CLLM_CHECK(v.stream_bytes == rows * cols * bytes, "codecllm::", op,
               ": corrupt stream: a stored matrix of ", v.stream_bytes, " bytes");
    return v;
  }
  v.raw = raw.const_data_ptr<uint8_t>();
  v.raw_bytes = raw.numel();
  v.index = (const uint32_t*)index.const_data_ptr<int32_t>();
  v.table = (const uint32_t*)table.const_data_ptr<int32_t>();
  v.segments = table.size(0);
  v.table_stride = table.size(1);
  v.tile_cols = layout.tile_cols;
  const bool fixed = v.coding == Coding::fixed;
  CLLM_CHECK(tile_cols_exist(v.tile_cols, v.coding), "codecllm::", op,
             ": corrupt layout: tile_cols ", v.tile_cols);
  if (fixed)
    check_fixed_args(v, layout, index, op);
  else
    check_rans_args(v, layout, index, op);
  v.derive();
  v.tile_rows =
      stream.is_cpu() ? tile_rows_of_table(v, op) : tile_rows_of_index(v, index.size(0), op);
  const int64_t plane = v.tile_rows * v.plane_row_bytes,
                have = fixed ? v.stream_bytes : v.raw_bytes;
  CLLM_CHECK(have == plane, "codecllm::", op, ": corrupt ", fixed ? "coded" : "raw",
             " plane: ", have, " bytes, not ", plane);
  CLLM_CHECK(index.size(0) == v.tile_rows * v.col_tiles, "codecllm::", op,
             ": corrupt index: ", index.size(0), " records, not ", v.tile_rows * v.col_tiles);
  // Kernels fetch a few words beyond the last tile.
  CLLM_CHECK(fixed || !v.tile_rows || !v.col_tiles || v.stream_bytes >= 2 * kStreamPadWords,
             "codecllm::", op, ": corrupt coded plane: ", v.stream_bytes, " bytes");
  return v;
}

// What a conversion to coding fixed is asked for: columns of a tile, and one window base to a
// segment. A matrix without segments, as stored ones are, counts as one.
inline void check_target(int64_t tile_cols, const Tensor& bases, const CodedView& source,
                         const char* op) {
  CLLM_CHECK(source.format == Bf16::fmt.id, "codecllm::", op,
             ": coding fixed is for bf16, not for weight format id ", source.format);
  CLLM_CHECK(tile_cols_exist(tile_cols, Coding::fixed), "codecllm::", op, ": tile_cols ", tile_cols,
             " is not a multiple of 16 from 16 to ", kMaxFixedTileCols);
  CLLM_CHECK(bases.is_cpu(), "codecllm::", op, ": bases is not on the CPU");
  check_tensor(bases, ScalarType::Int, 1, op, "bases", bases);
  const int64_t segments = std::max<int64_t>(source.segments, 1);
  CLLM_CHECK(bases.numel() == segments, "codecllm::", op, ": ", bases.numel(), " bases for ",
             segments, " segments");
  const int32_t* base = bases.const_data_ptr<int32_t>();
  for (int64_t s = 0; s < segments; ++s)
    CLLM_CHECK(base[s] >= 0 && base[s] <= kMaxFixedBase, "codecllm::", op, ": window base ",
               base[s], " outside 0..", kMaxFixedBase);
}

// A buffer for the words: bytes, row by row.
inline void check_out(const Tensor& out, const Operand& coded, const char* op) {
  check_tensor(out, ScalarType::Byte, 2, op, "out", coded.stream);
  const int64_t row_bytes = coded.cols * word_bytes(coded.layout.format, op);
  CLLM_CHECK(out.size(0) == coded.rows && out.size(1) == row_bytes, "codecllm::", op, ": out is ",
             out.size(0), " x ", out.size(1), " bytes, not ", coded.rows, " x ", row_bytes);
}

inline void check_status(const Status& s, const char* op, Coding coding) {
  const bool fixed = coding == Coding::fixed;
  CLLM_CHECK(s.what != Corruption::index, "codecllm::", op, ": corrupt index: tile ", s.tile,
             fixed ? " has no place in the list, or a list that is not sorted or leaves the matrix"
                   : " lies outside the coded plane or names another segment");
  CLLM_CHECK(
      s.what != Corruption::stream, "codecllm::", op, ": corrupt coded plane: tile ", s.tile,
      " (or the one below it) ",
      fixed ? "has a code of zero with a mantissa" : "does not end in the encoder's first state");
}

}  // namespace codecllm
