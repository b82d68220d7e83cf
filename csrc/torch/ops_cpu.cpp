// CPU implementations of the ops whose schemas stand in codecllm_ops/ops/schema.py: checks,
// threads, no arithmetic.
#include <algorithm>
#include <array>
#include <atomic>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../cpu/encode.h"
#include "../cpu/kernels.h"
#include "linear_args.h"
#include "parallel.h"

namespace codecllm {
namespace {

void decode_into(const Tensor& stream, const Tensor& raw, const Tensor& index, const Tensor& table,
                 int64_t rows, int64_t cols, int64_t layout_word, const Tensor& out) {
  const Operand coded(stream, raw, index, table, rows, cols, layout_word);
  const CodedView view = coded_view(coded, "decode");
  check_out(out, coded, "decode");
  if (!out.numel()) return;
  uint8_t* to = out.mutable_data_ptr<uint8_t>();
  if (coded.layout.stored()) {
    memcpy(to, view.stream, size_t(view.stream_bytes));
    return;
  }
  const Kernels& k = kernels();
  check_status(parallel_tile_rows(0, view.tile_rows, scratch_bytes(view, 0),
                                  [&](int64_t begin, int64_t end, uint8_t* scratch) {
                                    return k.decode(view, begin, end, to, scratch);
                                  }),
               "decode", view.coding);
}

// Words of rows `ids` (int64, contiguous) to `to`, row by row.
void copy_rows(const Tensor& ids, const Operand& coded, const CodedView& view, uint8_t* to) {
  const int64_t n = ids.numel(), rows = coded.rows;
  const int64_t* id = ids.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < n; ++i)
    CLLM_CHECK(id[i] >= 0 && id[i] < rows, "codecllm::decode_rows: index ", id[i],
               " is out of range for a matrix of ", rows, " rows");
  const int64_t row_bytes = coded.cols * word_bytes(coded.layout.format, "decode_rows");
  if (n * row_bytes == 0) return;
  if (coded.layout.stored()) {
    for (int64_t i = 0; i < n; ++i)
      memcpy(to + i * row_bytes, view.stream + id[i] * row_bytes, size_t(row_bytes));
    return;
  }
  if (n == 1) return check_status(decode_rows(view, id, 0, 1, to), "decode_rows", view.coding);
  SharedStatus status;
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    status.merge(decode_rows(view, id, begin, end, to));
  });
  check_status(status.get(), "decode_rows", view.coding);
}

Tensor decode_rows_words(const Tensor& ids, const Tensor& stream, const Tensor& raw,
                         const Tensor& index, const Tensor& table, int64_t rows, int64_t cols,
                         int64_t layout_word) {
  const Operand coded(stream, raw, index, table, rows, cols, layout_word);
  const CodedView view = coded_view(coded, "decode_rows");
  check_tensor(ids, ScalarType::Long, 1, "decode_rows", "ids", stream);
  const int64_t row_bytes = cols * word_bytes(coded.layout.format, "decode_rows");
  Tensor out = torch::stable::new_empty(stream, {ids.numel(), row_bytes}, ScalarType::Byte);
  copy_rows(ids, coded, view, out.mutable_data_ptr<uint8_t>());
  return out;
}

// Rows `ids` [...] as [..., cols] of the dtype that is coded, without scales.
Tensor decode_rows_native(const Tensor& ids, const Tensor& stream, const Tensor& raw,
                          const Tensor& index, const Tensor& table, int64_t rows, int64_t cols,
                          int64_t layout_word) {
  const char* op = "decode_rows";
  const Operand coded(stream, raw, index, table, rows, cols, layout_word);
  const CodedView view = coded_view(coded, op);
  check_tensor(ids, ScalarType::Long, ids.dim(), op, "ids", stream);
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < ids.dim(); ++d) shape.push_back(ids.size(d));
  shape.push_back(cols);
  Tensor out = make_empty(stream, shape, word_dtype(coded.layout.format));
  copy_rows(ids, coded, view, (uint8_t*)out.mutable_data_ptr());
  return out;
}

// Elements of x that are worth another thread.
constexpr int64_t kElementsOfThread = 1 << 15;

struct LinearCall {
  CodedView view;
  Layout layout;
  Dtype dtype;
  Tensor x;                    // [..., K], contiguous
  int64_t m;                   // rows of x
  std::vector<int64_t> shape;  // of the result
  OptTensor scale, bias;

  Scale weight_scale() const {
    return Scale::of(layout.scale_kind, scale ? scale->const_data_ptr<float>() : nullptr);
  }
};

// What choose_path has to know of x.
Exponents exponents_of(const LinearCall& c, const void* x, int64_t m) {
  if (!may_scale_x(kernels(), c.view, c.dtype, m)) return {};
  Exponents found;
  std::mutex mutex;
  torch::stable::parallel_for(0, m * c.view.cols, kElementsOfThread, [&](int64_t lo, int64_t hi) {
    const Exponents some = exponents(c.dtype, x, lo, hi);
    std::lock_guard<std::mutex> lock(mutex);
    found.merge(some);
  });
  return found;
}

// Decoded weights live in registers and the first-level cache only. Rows of x so many at a time
// that x stays in the outer caches. Between 128 and 512 there is no clear best (Zen 4, two
// threads).
Tensor fused_linear(const LinearCall& c) {
  constexpr int64_t kRowsAtOnce = 256;
  const int64_t rows = c.view.rows, cols = c.view.cols;
  Tensor out = make_empty(c.x, c.shape, c.x.scalar_type());
  const Kernels& k = kernels();
  const bool as_bf16 = packs_bf16(k, c.view, c.dtype);
  const int64_t element = c.dtype == Dtype::f32 ? 4 : 2;
  const int64_t parts = ceil_div(c.m, kRowsAtOnce), most = ceil_div(c.m, parts);
  ScratchBuffer packed(most * packed_cols(LinearPath::fixed_registers, cols) * (as_bf16 ? 2 : 4));
  for (int64_t first = 0; first < c.m; first += most) {
    const int64_t m = std::min(most, c.m - first);
    const uint8_t* x = (const uint8_t*)c.x.const_data_ptr() + first * cols * element;
    int exponent;
    const LinearPath path = choose_path(k, c.view, c.dtype, m, exponents_of(c, x, m), exponent);
    torch::stable::parallel_for(
        0, m, std::max<int64_t>(kBlockRows, kElementsOfThread / cols), [&](int64_t lo, int64_t hi) {
          pack_x(path, x, c.dtype, m, cols, as_bf16, exponent, lo, hi, packed.get());
        });
    const LinearArgs a = {path,
                          packed.get(),
                          as_bf16,
                          exponent,
                          m,
                          c.weight_scale(),
                          c.bias ? c.bias->const_data_ptr() : nullptr,
                          (uint8_t*)out.mutable_data_ptr() + first * rows * element,
                          c.dtype,
                          rows};
    check_status(parallel_tile_rows(0, c.view.tile_rows, scratch_bytes(c.view, m),
                                    [&](int64_t begin, int64_t end, uint8_t* scratch) {
                                      return k.linear(c.view, begin, end, a, scratch);
                                    }),
                 "decode_linear", c.view.coding);
  }
  return out;
}

// Into a view of out, which need not be contiguous.
void aten_linear_out(const Tensor& x, const Tensor& weight, const OptTensor& bias,
                     const Tensor& out) {
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(x), torch::stable::detail::from(weight),
      torch::stable::detail::from(bias), torch::stable::detail::from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linear", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // out once more, owned by the stack
}

// Decodes a block of rows into a scratch that stays in the outer caches, then the library's GEMM,
// which packs x for every block again. F.linear on slices of a dense weight, 512 rows of x, four
// shapes, two threads of an EPYC (Zen 4): 2 to 8 % lost in slices of 4 MiB that are copied to their
// place, 0.5 to 3.5 % in slices of 8 MiB that are written there.
Tensor gemm_linear(const LinearCall& c) {
  constexpr int64_t kBlockBytes = 8 << 20;
  const int64_t m = c.m, rows = c.view.rows, cols = c.view.cols;
  const Tensor x = c.x.dim() == 2 ? c.x : torch::stable::view(c.x, {m, cols});
  const int64_t row_bytes = cols * (c.dtype == Dtype::f32 ? 4 : 2);
  const int64_t block = std::max<int64_t>(4, kBlockBytes / (row_bytes * kTileRows) / 2 * 2);
  const Kernels& k = kernels();
  Tensor out = torch::stable::new_empty(c.x, {m, rows});
  Tensor scratch = torch::stable::new_empty(c.x, {std::min(rows, block * kTileRows), cols});
  for (int64_t begin = 0; begin < c.view.tile_rows; begin += block) {
    const int64_t end = std::min(begin + block, c.view.tile_rows);
    const int64_t row0 = first_row(c.view, begin), n = first_row(c.view, end) - row0;
    uint8_t* to = (uint8_t*)scratch.mutable_data_ptr();
    check_status(parallel_tile_rows(begin, end, scratch_bytes(c.view, 0),
                                    [&](int64_t lo, int64_t hi, uint8_t* thread_scratch) {
                                      return k.decode_as(c.view, lo, hi, c.dtype, c.weight_scale(),
                                                         row0, to, thread_scratch);
                                    }),
                 "decode_linear", c.view.coding);
    Tensor weight = torch::stable::narrow(scratch, 0, 0, n);
    OptTensor bias = c.bias;
    if (bias) bias = torch::stable::narrow(*bias, 0, row0, n);
    aten_linear_out(x, weight, bias, torch::stable::narrow(out, 1, row0, n));
  }
  return c.x.dim() == 2 ? out : torch::stable::view(out, c.shape);
}

// Rows of x from which on decoding blocks and calling the library's GEMM is faster; -1: by coding.
// rans, and what the block kernel of fixed does not take: 128 (bench/bench_linear.py). With it,
// speed relative to F.linear in bf16, own kernel and library, medians of three runs, two threads of
// an EPYC (Zen 4): 4096 x 4096 0.89 and 0.83 at 256 rows, 0.87 and 0.90 at 512, 0.92 and 0.95 at
// 1024; 2048 x 5632 0.89 and 0.80, 0.86 and 0.91, 0.86 and 0.94; 11008 x 4096 0.87 and 0.83, 0.92
// and 0.86, 0.97 and 0.96.
std::atomic<int64_t> gemm_from{-1};

bool library_is_faster(const LinearCall& c) {
  const int64_t set = gemm_from.load();
  if (set >= 0) return c.m >= set;
  const bool blocks = c.view.coding == Coding::fixed && packs_bf16(kernels(), c.view, c.dtype);
  return c.m >= (blocks ? 512 : 128);
}

Tensor decode_linear(const Tensor& x, const Tensor& stream, const Tensor& raw, const Tensor& index,
                     const Tensor& table, OptTensor scale, int64_t rows, int64_t cols,
                     int64_t layout_word, OptTensor bias) {
  const Operand coded(stream, raw, index, table, rows, cols, layout_word);
  const CodedView view = coded_view(coded, "decode_linear");
  const Layout& layout = coded.layout;
  const Dtype dtype = activation_dtype(x);
  check_product(x, coded, scale, bias);
  if (layout.stored()) return decode_then_linear(x, coded, scale, bias);
  LinearCall c = {view, layout, dtype, as_contiguous(x), 1, {}, scale, bias};
  c.shape = output_shape(x, rows, c.m);
  if (c.m == 0 || rows == 0) return make_empty(x, c.shape, x.scalar_type());
  if (cols == 0) {  // no products: the bias, or zero
    Tensor out = make_empty(x, c.shape, x.scalar_type());
    const void* b = bias ? bias->const_data_ptr() : nullptr;
    for (int64_t i = 0; i < c.m * rows; ++i)
      store_float(out.mutable_data_ptr(), c.dtype, i, b ? load_float(b, c.dtype, i % rows) : 0.f);
    return out;
  }
  return library_is_faster(c) ? gemm_linear(c) : fused_linear(c);
}

int64_t set_gemm_from(int64_t rows) { return gemm_from.exchange(rows); }

// ---- encoder ------------------------------------------------------------------------------------

DenseView dense_view(const Tensor& words, int64_t cols, int64_t format, int64_t tile_cols,
                     int64_t predictor, int64_t pad_value, const char* op) {
  check_tensor(words, ScalarType::Byte, 2, op, "words", words);
  const int bytes = word_bytes(int(format), op);
  CLLM_CHECK(words.size(1) == cols * bytes, "codecllm::", op, ": ", words.size(1),
             " bytes a row for ", cols, " columns");
  CLLM_CHECK(tile_cols >= 16 && tile_cols % 16 == 0 && tile_cols <= kMaxTileCols, "codecllm::", op,
             ": tile_cols ", tile_cols, " is not a multiple of 16 from 16 to 16384");
  return {words.const_data_ptr<uint8_t>(),
          words.size(0),
          cols,
          int(format),
          int(tile_cols),
          int(predictor),
          uint32_t(pad_value)};
}

// Sums histograms of `bins` counts over ranges of [0, n).
template <class F>
Tensor parallel_counts(const Tensor& like, int64_t n, int64_t bins, F&& count) {
  Tensor total = torch::stable::new_zeros(like, {bins}, ScalarType::Long);
  int64_t* to = total.mutable_data_ptr<int64_t>();
  const int64_t ranges = std::min<int64_t>(n, torch::stable::get_num_threads());
  if (ranges <= 0) return total;
  std::vector<int64_t> counts(size_t(bins * ranges), 0);
  torch::stable::parallel_for(0, ranges, 1, [&](int64_t lo, int64_t hi) {
    for (int64_t r = lo; r < hi; ++r)
      count(n * r / ranges, n * (r + 1) / ranges, counts.data() + bins * r);
  });
  for (size_t i = 0; i < counts.size(); ++i) to[i % bins] += counts[i];
  return total;
}

Tensor count_values_op(const Tensor& words, int64_t cols, int64_t format) {
  const DenseView view = dense_view(words, cols, format, 16, 0, 0, "_count_values");
  return parallel_counts(words, view.rows, 256, [&](int64_t begin, int64_t end, int64_t* counts) {
    count_values(view, begin, end, counts);
  });
}

Tensor count_pairs_op(const Tensor& words, int64_t cols, int64_t format, int64_t tile_cols,
                      int64_t predictor, int64_t pad_value) {
  const DenseView view =
      dense_view(words, cols, format, tile_cols, predictor, pad_value, "_count_pairs");
  return parallel_counts(
      words, ceil_div(view.rows, kTileRows), 65536,
      [&](int64_t begin, int64_t end, int64_t* counts) { count_pairs(view, begin, end, counts); });
}

std::tuple<Tensor, Tensor, Tensor> encode_tiles_op(const Tensor& words, const Tensor& pairs,
                                                   const Tensor& freqs, int64_t cols,
                                                   int64_t format, int64_t tile_cols,
                                                   int64_t predictor, int64_t pad_value,
                                                   int64_t window_base, int64_t scale_bits) {
  const char* op = "_encode_tiles";
  const DenseView view = dense_view(words, cols, format, tile_cols, predictor, pad_value, op);
  check_tensor(pairs, ScalarType::Long, 1, op, "pairs", words);
  check_tensor(freqs, ScalarType::Long, 1, op, "freqs", words);
  CLLM_CHECK(scale_bits >= kMinScaleBits && scale_bits <= kMaxScaleBits, "codecllm::", op,
             ": scale_bits ", scale_bits, " outside 8..11");
  CLLM_CHECK(pairs.numel() == freqs.numel() && window_base >= 0, "codecllm::", op, ": ",
             pairs.numel(), " pairs, ", freqs.numel(), " frequencies, window_base ", window_base);
  int64_t sum = 0;
  for (int64_t i = 0; i < pairs.numel(); ++i) {
    int64_t id = pairs.const_data_ptr<int64_t>()[i], freq = freqs.const_data_ptr<int64_t>()[i];
    CLLM_CHECK(id >= 0 && id / 32 < kEscapeIndex && id % 32 < kEscapeIndex && freq > 0 &&
                   freq < int64_t(1) << scale_bits &&
                   window_base + std::max(id / 32, id % 32) < 256,
               "codecllm::", op, ": pair ", id, " of frequency ", freq);
    sum += freq;
  }
  CLLM_CHECK(sum < int64_t(1) << scale_bits, "codecllm::", op,
             ": frequencies leave nothing for the escape");
  const EncoderTables tables(pairs.const_data_ptr<int64_t>(), freqs.const_data_ptr<int64_t>(),
                             pairs.numel(), uint32_t(window_base), int(scale_bits));
  const int64_t tile_rows = ceil_div(view.rows, kTileRows), col_tiles = ceil_div(cols, tile_cols);
  int64_t raw_bytes = 0;
  with_format(view.format,
              [&](auto f) { raw_bytes = ColumnTiles{cols, int(tile_cols)}.raw_row_bytes(f.fmt); });
  Tensor raw = torch::stable::new_empty(words, {tile_rows * raw_bytes}, ScalarType::Byte);
  Tensor lengths =
      torch::stable::new_empty(words, {tile_rows * col_tiles, kLanes}, ScalarType::Int);
  uint8_t* raw_to = raw.mutable_data_ptr<uint8_t>();
  int32_t* lengths_to = lengths.mutable_data_ptr<int32_t>();
  std::vector<std::vector<uint16_t>> rows(static_cast<size_t>(tile_rows));
  std::atomic<bool> out_of_memory{false};
  torch::stable::parallel_for(0, tile_rows, 1, [&](int64_t begin, int64_t end) {
    try {
      for (int64_t r = begin; r < end; ++r)
        encode_tile_row(view, tables, r, rows[size_t(r)], raw_to + r * raw_bytes,
                        lengths_to + r * col_tiles * kLanes);
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  });
  CLLM_CHECK(!out_of_memory, "codecllm::", op, ": out of memory");
  std::vector<int64_t> at(size_t(tile_rows) + 1, 0);
  for (size_t r = 0; r < rows.size(); ++r) at[r + 1] = at[r] + 2 * int64_t(rows[r].size());
  Tensor stream =
      torch::stable::new_empty(words, {at.back() + 2 * kStreamPadWords}, ScalarType::Byte);
  uint8_t* to = stream.mutable_data_ptr<uint8_t>();
  for (size_t r = 0; r < rows.size(); ++r) {
    if (!rows[r].empty()) memcpy(to + at[r], rows[r].data(), rows[r].size() * 2);
    std::vector<uint16_t>().swap(rows[r]);
  }
  memset(to + at.back(), 0, 2 * kStreamPadWords);
  return {stream, raw, lengths};
}

// ---- instruction sets ---------------------------------------------------------------------------

std::string isa() { return kernels().name; }

bool select_isa(std::string name) { return select_kernels(name.c_str()); }

std::string available_isas() {
  std::string names;
  for (const Kernels* const* k = all_kernels(); *k; ++k)
    if ((*k)->supported()) names += names.empty() ? (*k)->name : std::string(" ") + (*k)->name;
  return names;
}

}  // namespace
}  // namespace codecllm

STABLE_TORCH_LIBRARY_IMPL(codecllm, CPU, m) {
  m.impl("_decode_into", TORCH_BOX(&codecllm::decode_into));
  m.impl("_decode_rows_words", TORCH_BOX(&codecllm::decode_rows_words));
  m.impl("_decode_rows_native", TORCH_BOX(&codecllm::decode_rows_native));
  m.impl("decode_linear", TORCH_BOX(&codecllm::decode_linear));
  m.impl("_count_values", TORCH_BOX(&codecllm::count_values_op));
  m.impl("_count_pairs", TORCH_BOX(&codecllm::count_pairs_op));
  m.impl("_encode_tiles", TORCH_BOX(&codecllm::encode_tiles_op));
}

STABLE_TORCH_LIBRARY_IMPL(codecllm, CompositeExplicitAutograd, m) {
  m.impl("_isa", TORCH_BOX(&codecllm::isa));
  m.impl("_select_isa", TORCH_BOX(&codecllm::select_isa));
  m.impl("_set_gemm_from", TORCH_BOX(&codecllm::set_gemm_from));
  m.impl("_available_isas", TORCH_BOX(&codecllm::available_isas));
}
