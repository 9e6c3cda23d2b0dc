// A linear layer's product for few rows of x, as one sentence has: y = x w^T by dot products of rows of x and of w.
// Packing w, which makes it fast for many rows, would cost more than the product; here it is read once, where it is.
// How columns are spread over threads depends on their number, but the order in which each element is summed does not.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/macros.h"
#include "gemm.h"
#include "vec.h"

namespace earlybert {
namespace EARLYBERT_ISA {

// More rows than this pay for packing: on a Zen 4 both ways are as fast at about 128 rows.
constexpr int64_t kFewRows = 96;

constexpr int kDotCols = 4;
#if defined(__AVX512F__)
constexpr int kDotRows = 6;  // 24 of the 32 registers accumulate
#else
constexpr int kDotRows = 3;  // 12 of 16
#endif

// The sums of four vectors' lanes, to y[0 ... 3].
EARLYBERT_INLINE void sum_lanes_of_four(const Vec* v, float* y) {
  float lanes[kVec];
#if defined(__GNUC__) && !defined(__clang__)
  VecInt even, odd, low, high;  // of two vectors, by quadruples of lanes: interleaved pairs, and halves
  for (int lane = 0; lane < kVec; ++lane) {
    const int quad = lane & ~3, in_quad = lane & 3;
    even[lane] = quad + in_quad / 2 + (in_quad & 1) * kVec;
    odd[lane] = even[lane] + 2;
    low[lane] = quad + (in_quad & 1) + in_quad / 2 * kVec;
    high[lane] = low[lane] + 2;
  }
  const Vec a = __builtin_shuffle(v[0], v[1], even) + __builtin_shuffle(v[0], v[1], odd);
  const Vec b = __builtin_shuffle(v[2], v[3], even) + __builtin_shuffle(v[2], v[3], odd);
  // Of a: sums of v[0], v[1], v[0], v[1] in each quadruple; of b likewise.
  store(lanes, __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high));
  typedef float Quad __attribute__((vector_size(16)));
  Quad total = {};
  for (int quad = 0; quad < kVec; quad += 4) {
    Quad sums;
    std::memcpy(&sums, lanes + quad, sizeof(sums));
    total = quad == 0 ? sums : total + sums;
  }
  std::memcpy(y, &total, sizeof(total));
#else
  for (int j = 0; j < 4; ++j) y[j] = sum_lanes(v[j]);
#endif
}

// Rows of w that are asked for while others are multiplied: `count` of them, at most kDotCols, from `first` on.
struct RowsAhead {
  const float* first;
  int64_t stride, count;
};

// The dot products of kRows rows of x with kDotCols of w, to y[i][column ...].
template <int kRows>
static inline void dot_tile(int64_t depth, const float* const* x, const float* const* w, const RowsAhead& ahead,
                            float* const* y, int64_t column) {
  Vec sums[kRows][kDotCols];
  EARLYBERT_UNROLL
  for (int i = 0; i < kRows; ++i) {
    EARLYBERT_UNROLL
    for (int j = 0; j < kDotCols; ++j) sums[i][j] = Vec{};
  }
  const auto add = [&](const auto& load_at) {
    Vec right[kDotCols];
    EARLYBERT_UNROLL
    for (int j = 0; j < kDotCols; ++j) right[j] = load_at(w[j]);
    EARLYBERT_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const Vec left = load_at(x[i]);
      EARLYBERT_UNROLL
      for (int j = 0; j < kDotCols; ++j) sums[i][j] += left * right[j];
    }
  };
  int64_t p = 0;
  for (; p + kVec <= depth; p += kVec) {
    EARLYBERT_UNROLL
    for (int j = 0; j < kDotCols; ++j) {
      if (j < ahead.count) __builtin_prefetch(ahead.first + j * ahead.stride + p, 0, 2);
    }
    add([p](const float* row) { return load(row + p); });
  }
  if (p < depth) add([p, depth](const float* row) { return load_some(row + p, depth - p); });
  EARLYBERT_UNROLL
  for (int i = 0; i < kRows; ++i) sum_lanes_of_four(sums[i], y[i] + column);
}

template <int kRows = kDotRows>
static inline void dot_rows(int64_t rows, int64_t depth, const float* const* x, const float* const* w,
                            const RowsAhead& ahead, float* const* y, int64_t column) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return dot_rows<kRows - 1>(rows, depth, x, w, ahead, y, column);
  }
  dot_tile<kRows>(depth, x, w, ahead, y, column);
}

// c (rows x cols) = a (rows x depth) b (depth x cols), both float32 with contiguous `inner` and nothing picked or
// scaled along it; rows <= kFewRows. The epilogue is called as gemm's.
template <typename Epilogue>
static void few_rows_product(int64_t rows, int64_t cols, int64_t depth, const Factor& a, const Factor& b,
                             const Product& c, const Epilogue& epilogue) {
  const int64_t blocks = (cols + kTileCols - 1) / kTileCols, tiles = (rows + kDotRows - 1) / kDotRows;
  const int64_t threads = rows * cols * depth < kParallelProducts ? 1 : min(blocks, max_threads());
  const float* x[kFewRows];
  for (int64_t i = 0; i < rows; ++i) x[i] = a.data.floats + at(a.outer_index, i) * a.outer;

#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (threads > 1)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t first = block * kTileCols, count = min(kTileCols, cols - first);
    float out[kFewRows * kTileCols];
    float* y[kFewRows];
    for (int64_t i = 0; i < rows; ++i) y[i] = out + i * kTileCols;
    for (int64_t j = 0; j < count; j += kDotCols) {
      const float* w[kDotCols];  // a column that is missing repeats the last
      for (int64_t n = 0; n < kDotCols; ++n)
        w[n] = b.data.floats + at(b.outer_index, first + min(j + n, count - 1)) * b.outer;
      for (int64_t t = 0; t < tiles; ++t) {  // rows are spread evenly, and so is asking for w's rows after the next
        const int64_t row = t * rows / tiles, asked = t * kDotCols / tiles;
        const RowsAhead ahead = {w[0] + (2 * kDotCols + asked) * b.outer, b.outer, (t + 1) * kDotCols / tiles - asked};
        dot_rows((t + 1) * rows / tiles - row, depth, x + row, w, ahead, y + row, j);
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      float* target = c.data + at(c.row_index, i) * c.ld + first;
      for (int64_t n = 0; n < count; ++n) target[n] = y[i][n];
      epilogue(target, i, first, count);
    }
  }
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
