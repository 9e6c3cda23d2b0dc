// Matrix products of the size of one attention head's: everything is in the nearest caches, nothing is packed.
#pragma once

#include <cstdint>

#include "vec.h"

namespace earlybert {
namespace EARLYBERT_ISA {

#if defined(__AVX512F__)
constexpr int kSmallRows = 8;  // 16 of the 32 registers accumulate
#else
constexpr int kSmallRows = 4;  // 8 of 16
#endif

// A factor of a product: element (i, p) is at data[i * row + p * col].
struct Matrix {
  const float* data;
  int64_t row, col;
};

template <int kRows, int kCols>
static inline __attribute__((always_inline)) void small_block(int64_t depth, const Matrix& a, const float* b,
                                                              int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  Vec sums[kRows][kCols];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kCols; ++j) sums[i][j] = accumulate ? load(c + i * ldc + j * kVec) : Vec{};
  }
  for (int64_t p = 0; p < depth; ++p) {
    Vec right[kCols];
    for (int j = 0; j < kCols; ++j) right[j] = load(b + p * ldb + j * kVec);
    for (int i = 0; i < kRows; ++i) {
      const Vec left = splat(a.data[i * a.row + p * a.col]);
      for (int j = 0; j < kCols; ++j) sums[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kCols; ++j) store(c + i * ldc + j * kVec, sums[i][j]);
  }
}

template <int kCols>
static inline void small_columns(int64_t rows, int64_t depth, Matrix a, const float* b, int64_t ldb, float* c,
                                 int64_t ldc, bool accumulate) {
  int64_t i = 0;
  for (; i + kSmallRows <= rows; i += kSmallRows, a.data += kSmallRows * a.row, c += kSmallRows * ldc) {
    small_block<kSmallRows, kCols>(depth, a, b, ldb, c, ldc, accumulate);
  }
  for (; i + 2 <= rows; i += 2, a.data += 2 * a.row, c += 2 * ldc) {
    small_block<2, kCols>(depth, a, b, ldb, c, ldc, accumulate);
  }
  if (i < rows) small_block<1, kCols>(depth, a, b, ldb, c, ldc, accumulate);
}

// c (rows x cols) = a (rows x depth) b (depth x cols), added to c when `accumulate`. b and c are row-major with
// leading dimensions ldb and ldc; cols is a multiple of kVec.
static inline void small_gemm(int64_t rows, int64_t cols, int64_t depth, Matrix a, const float* b, int64_t ldb,
                              float* c, int64_t ldc, bool accumulate) {
  int64_t j = 0;
  for (; j + 2 * kVec <= cols; j += 2 * kVec) small_columns<2>(rows, depth, a, b + j, ldb, c + j, ldc, accumulate);
  if (j < cols) small_columns<1>(rows, depth, a, b + j, ldb, c + j, ldc, accumulate);
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
