// Where kernels get their pairs from. A source is one coding of one weight format: it finds tiles
// and decodes them. Kernels (decode_kernel.h, linear_kernel.h) know tiles, and what is to be done
// with a pair register, a sink; nothing else. A coding is a file source_<coding>.h, and its lines
// in sources.h.
#pragma once
#include <concepts>

#include "simd.h"
#include "tile_place.h"

namespace codecllm {
namespace {

// A row of a tile: its pairs in the order of the columns.
struct RowPairs {
  uint32_t pairs[kMaxTileCols / 2], low[kMaxTileCols / 2];
};

constexpr int kTilesAtOnce = 2;         // 4 chains of 16 lanes with AVX-512
constexpr int kChunks = kLanes / V::W;  // registers per tile

// What is done with pairs. Tile t of those decoded at once, chunk c of its lanes, pair j of group
// g: the pair register, and for words of 32 bits the low halves.
struct AnySink {
  void put(int t, int c, int g, int j, V::reg pair, V::reg low);
};

template <class S>
concept Source =
    requires(S source, const CodedView& view, uint8_t* scratch, int64_t at, typename S::Tile tile,
             typename S::Prefetch prefetch, AnySink sink, uint32_t* pairs) {
      typename S::Format;                                         // weight format
      requires std::derived_from<typename S::Tile, TilePlace>;    // with what decoding it needs
      requires std::default_initializable<typename S::Prefetch>;  // of nothing
      S(view, scratch);  // scratch: source_scratch_bytes() of sources.h

      // Finds the tile of that tile row and column. False: corrupt index; its number is there.
      { source.locate(at, at, tile) } -> std::same_as<bool>;
      // What to ask of memory for a tile while the one before it is decoded.
      { source.prefetch(tile) } -> std::same_as<typename S::Prefetch>;
      // Decodes 1 or 2 tiles of the same width, and gives the sink every pair, in any order. False:
      // the streams are corrupt; the sink has then seen wrong pairs.
      { source.template decode<kTilesAtOnce>(&tile, &prefetch, sink) } -> std::same_as<bool>;
      // Whether pairs are final only after a second look at the whole tile, in lane order; and it.
      { source.has_second_pass() } -> std::same_as<bool>;
      source.second_pass(tile, pairs);
    };

}  // namespace
}  // namespace codecllm
