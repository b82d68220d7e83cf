// Prints the numbers of csrc/core as JSON; test_constants.py compares them with Python's.
#include <stdio.h>

#include <initializer_list>

#include "core/format.h"
#include "core/layout.h"
#include "core/rans.h"

using namespace codecllm;

// Lane order and back: every pair of a tile of two groups is where its row and column say.
constexpr bool places_agree() {
  for (int group = 0; group < 2; ++group)
    for (int j = 0; j < kPairsPerGroup; ++j)
      for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < 2; ++i)
          if (pair_at(pair_row(lane, j), kGroupCols * group + pair_col(lane, j) + i) !=
              (kPairsPerGroup * group + j) * kLanes + lane)
            return false;
  return true;
}
static_assert(places_agree());

static const char* separator = "";

static void key(const char* name, long long value) {
  printf("%s\"%s\": %lld", separator, name, value);
  separator = ", ";
}

int main() {
  printf("{\"constants\": {");
  key("lanes", kLanes);
  key("tile_rows", kTileRows);
  key("group_cols", kGroupCols);
  key("pairs_per_group", kPairsPerGroup);
  key("max_tile_cols", kMaxTileCols);
  key("stream_align", kStreamAlign);
  key("stream_pad", 2 * kStreamPadWords);
  key("min_scale_bits", kMinScaleBits);
  key("max_scale_bits", kMaxScaleBits);
  key("escape", kEscape);
  key("max_index", kEscapeIndex - 1);
  key("table_header", kTableHeader);
  key("rans_l", kRansL);
  key("fixed_containers", kFixedContainers);
  key("fixed_unit", kFixedUnit);
  key("fixed_codes", kFixedCodes);
  key("max_fixed_base", kMaxFixedBase);
  key("max_fixed_tile_cols", kMaxFixedTileCols);
  key("listed_bytes", kListedBytes);
  key("fixed_place", kFixedPlace);
  key("fixed_code", kFixedCode);
  key("list_entry", list_entry(15, 0xabc, 0x1234));

  printf("}, \"layout\": [");
  for (const LayoutField& f : kLayoutFields)
    printf("%s[\"%s\", %d, %d]", f.first_bit ? ", " : "", f.name, f.first_bit, f.bits);
  printf("], \"kinds\": {");
  separator = "";
  key("codings", kCodings);
  key("scale_kinds", kScaleKinds);
  key("rans", int(Coding::rans));
  key("stored", int(Coding::stored));
  key("fixed", int(Coding::fixed));
  key("row_scale", kRowScale);

  const int groups[] = {1, 2, 3, 5, 8, 31, 32, 1024};
  const char* comma = "";
  printf("}, \"formats\": [");
  for_each_format([&](auto f) {
    constexpr WeightFormat fmt = decltype(f)::fmt;
    printf("%s{", comma);
    comma = ", ";
    separator = "";
    key("id", fmt.id);
    key("word_bits", fmt.word_bits);
    key("coded_shift", fmt.coded_shift);
    key("coded_bits", fmt.coded_bits);
    key("flip", fmt.flip & 0xffff);
    printf(", \"planes\": [");
    for (int p = 0; p < fmt.n_planes; ++p)
      printf("%s[%u, %d, %d]", p ? ", " : "", fmt.planes[p].mask & 0xffff, fmt.planes[p].bits,
             int(fmt.planes[p].low_half));
    printf("]}");
  });

  comma = "";
  printf("], \"raw_tile_bytes\": {");
  for_each_format([&](auto f) {
    printf("%s\"%d\": [", comma, f.fmt.id);
    comma = ", ";
    for (int g : groups) printf("%s%lld", g == 1 ? "" : ", ", (long long)raw_tile_bytes(f.fmt, g));
    printf("]");
  });

  printf("}, \"fixed_tile_bytes\": [");
  for (int g : groups) printf("%s%lld", g == 1 ? "" : ", ", (long long)fixed_tile_bytes(g));
  printf("], \"fixed_spread\": [");
  comma = "";
  for (uint32_t mask : kFixedSpread) {
    printf("%s%u", comma, mask);
    comma = ", ";
  }

  printf("], \"containers\": {");
  for (int bits = 1; bits <= 16; bits *= 2) {
    printf("%s\"%d\": [", bits == 1 ? "" : ", ", bits);
    for (int g : groups) printf("%s%d", g == 1 ? "" : ", ", containers(bits, g));
    printf("]");
  }

  printf("}, \"container_at\": {");
  for (int count : {1, 2, 3, 4, 5, 7, 8, 13}) {
    printf("%s\"%d\": [", count == 1 ? "" : ", ", count);
    for (int i = 0; i < count; ++i)
      for (int lane = 0; lane < kLanes; ++lane)
        printf("%s%d%s",
               lane ? ", "
               : i  ? ", ["
                    : "[",
               container_at(i, lane, count), lane == kLanes - 1 ? "]" : "");
    printf("]");
  }

  printf("}, \"pair_places\": [");
  for (int lane = 0; lane < kLanes; ++lane)
    for (int j = 0; j < 4; ++j)
      printf("%s[%d, %d]%s",
             j      ? ", "
             : lane ? ", ["
                    : "[",
             pair_row(lane, j), pair_col(lane, j), j == 3 ? "]" : "");

  separator = "";
  printf("], \"entry_fields\": {");
  key("bias_mask", kBiasMask);
  key("freq_shift", kFreqShift);
  key("index_shift", kIndexShift);
  key("index_pair", kIndexPair);
  key("escape_from", kEscapeFrom);
  printf("}}\n");
}
