// Matrix products of the size of one attention head's: the right factor is packed once for several of them, and all is
// in the nearer caches. Micro-kernels are those of gemm.h.
#pragma once

#include <cstdint>

#include "gemm.h"

namespace earlybert {
namespace EARLYBERT_ISA {

// Elements of a panel of so many numbers along what is summed.
template <typename Kernel>
static inline int64_t panel_elements(int64_t depth) {
  return Kernel::steps(depth) * kTileCols;
}

// Packs b (depth x cols) into one panel of panel_elements(depth) after the other, each of kTileCols columns.
template <typename Kernel>
static void pack_right(int64_t cols, int64_t depth, const Factor& b, typename Kernel::Element* panels) {
  for (int64_t j = 0; j < cols; j += kTileCols, panels += panel_elements<Kernel>(depth)) {
    Kernel::pack_b(b, j, min(kTileCols, cols - j), 0, depth, panels);
  }
}

// c (rows x cols) = a (rows x depth) b (depth x cols), added to c when `accumulate`. The panels of b are `panel`
// elements apart; `left` has room for a panel of a. c is row-major with leading dimension ldc, and room for columns up
// to a multiple of kTileCols, which are written.
template <typename Kernel>
static void small_gemm(int64_t rows, int64_t cols, int64_t depth, const Factor& a, const typename Kernel::Element* b,
                       int64_t panel, typename Kernel::Element* left, float* c, int64_t ldc, bool accumulate) {
  const int64_t tiles = ceil_div(rows, Kernel::kRows), steps = Kernel::steps(depth);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t row = first_row<Kernel>(t, tiles, rows), count = first_row<Kernel>(t + 1, tiles, rows) - row;
    Kernel::pack_a(a, row, count, 0, depth, left);
    Kernel run(count);
    for (int64_t j = 0; j < cols; j += kTileCols) {
      run(steps, left, b + j / kTileCols * panel, c + row * ldc + j, ldc, accumulate);
    }
  }
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
