// Matrix products of the size of one attention head's: the right factor is packed once for several of them, and all is
// in the nearer caches. Formats are those of gemm.h.
#pragma once

#include <cstdint>

#include "gemm.h"

namespace earlybert {
namespace EARLYBERT_ISA {

// Elements of a panel of so many numbers along what is summed.
template <typename Format>
static inline int64_t panel_elements(int64_t depth) {
  return (depth + Format::kNumbers - 1) / Format::kNumbers * kTileCols;
}

// Packs b (depth x cols) into one panel of panel_elements(depth) after the other, each of kTileCols columns.
template <typename Format>
static void pack_right(int64_t cols, int64_t depth, const Factor& b, typename Format::Element* panels) {
  for (int64_t j = 0; j < cols; j += kTileCols, panels += panel_elements<Format>(depth)) {
    Format::pack(b, j, min(kTileCols, cols - j), 0, depth, kTileCols, panels);
  }
}

// c (rows x cols) = a (rows x depth) b (depth x cols), added to c when `accumulate`. The panels of b are `panel`
// elements apart; `left` has room for a tile of a, kRowPanel * depth elements. c is row-major with leading dimension
// ldc, and room for columns up to a multiple of kTileCols, which are written.
template <typename Format>
static void small_gemm(int64_t rows, int64_t cols, int64_t depth, const Factor& a, const typename Format::Element* b,
                       int64_t panel, typename Format::Element* left, float* c, int64_t ldc, bool accumulate) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows, steps = panel_elements<Format>(depth) / kTileCols;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t row = t * rows / tiles, count = (t + 1) * rows / tiles - row;
    Format::pack(a, row, count, 0, depth, kRowPanel, left);
    const Tile<Format> run = tile_of<Format>(count);
    for (int64_t j = 0; j < cols; j += kTileCols) {
      run(steps, left, b + j / kTileCols * panel, c + row * ldc + j, ldc, accumulate);
    }
  }
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
