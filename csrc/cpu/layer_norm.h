// The layer norm of one row, forward and backward, and the sums over rows that its parameters' gradients are.
#pragma once

#include <cstdint>

#include "instruction_sets.h"

namespace earlybert {

// Rows are summed into the parameters' gradients block by block, and the blocks in order. Blocks depend on the
// number of rows alone, which makes the result the same for any number of threads.
static inline int64_t layer_norm_block_rows(int64_t rows) {
  const int64_t most_blocks = 256;
  const int64_t block = (rows + most_blocks - 1) / most_blocks;
  return block < 16 ? 16 : block;
}
static inline int64_t layer_norm_blocks(int64_t rows) {
  const int64_t block = layer_norm_block_rows(rows);
  return (rows + block - 1) / block;
}

#if defined(EARLYBERT_ISA)
namespace EARLYBERT_ISA {

// Columns that one thread reduces at a time in the second stage of the parameters' gradients.
static constexpr int64_t kReduceCols = 64;

// row = (row - mean) * rstd * weight + bias, given the row's sum. Mean and rstd of row r go to means[r] and rstds[r],
// unless they are null.
static inline void layer_norm_row(float* __restrict row, float sum, int64_t cols, const float* __restrict weight,
                                  const float* __restrict bias, float eps, int64_t r, float* means, float* rstds) {
  const float mean = sum / static_cast<float>(cols);
  // A second pass, because mean(h^2) - mean(h)^2 cancels when the mean is large.
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t c = 0; c < cols; ++c) {
    const float centred = row[c] - mean;
    squares += centred * centred;
  }
  const float rstd = 1.0f / __builtin_sqrtf(squares / static_cast<float>(cols) + eps);
#pragma omp simd
  for (int64_t c = 0; c < cols; ++c) row[c] = (row[c] - mean) * rstd * weight[c] + bias[c];
  if (means == nullptr) return;
  means[r] = mean;
  rstds[r] = rstd;
}

// Turns a row of the norm's argument into the gradient of it, and adds to the sums of the parameters' gradients.
static inline void layer_norm_backward_row(float* __restrict row, const float* __restrict grad_out, int64_t cols,
                                           const float* __restrict weight, float mean, float rstd,
                                           float* __restrict sum_weight, float* __restrict sum_bias) {
  float sum = 0.0f, sum_normalised = 0.0f;
#pragma omp simd reduction(+ : sum, sum_normalised)
  for (int64_t c = 0; c < cols; ++c) {
    const float normalised = (row[c] - mean) * rstd;
    const float grad = grad_out[c] * weight[c];
    sum += grad;
    sum_normalised += grad * normalised;
    sum_weight[c] += grad_out[c] * normalised;
    sum_bias[c] += grad_out[c];
    row[c] = normalised;
  }
  const float average = sum / static_cast<float>(cols);
  const float average_normalised = sum_normalised / static_cast<float>(cols);
#pragma omp simd
  for (int64_t c = 0; c < cols; ++c) {
    row[c] = rstd * (grad_out[c] * weight[c] - average - row[c] * average_normalised);
  }
}

// Calls row(r, sum_weight, sum_bias) for every row and reduces what the calls have added up. To be called by all
// threads of a parallel region. partials: (layer_norm_blocks(rows), 2, cols).
template <typename Row>
static inline void layer_norm_backward_rows(int64_t rows, int64_t cols, float* partials, float* grad_weight,
                                            float* grad_bias, const Row& row) {
  const int64_t block_rows = layer_norm_block_rows(rows), blocks = layer_norm_blocks(rows);
#pragma omp for schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    float* __restrict sum_weight = partials + block * 2 * cols;
    float* __restrict sum_bias = sum_weight + cols;
    for (int64_t c = 0; c < 2 * cols; ++c) sum_weight[c] = 0.0f;
    const int64_t end = (block + 1) * block_rows < rows ? (block + 1) * block_rows : rows;
    for (int64_t r = block * block_rows; r < end; ++r) row(r, sum_weight, sum_bias);
  }
#pragma omp for schedule(static)
  for (int64_t begin = 0; begin < cols; begin += kReduceCols) {
    const int64_t end = begin + kReduceCols < cols ? begin + kReduceCols : cols;
    for (int64_t c = begin; c < end; ++c) grad_weight[c] = grad_bias[c] = 0.0f;
    for (int64_t block = 0; block < blocks; ++block) {
      const float* __restrict sum_weight = partials + block * 2 * cols;
      const float* __restrict sum_bias = sum_weight + cols;
#pragma omp simd
      for (int64_t c = begin; c < end; ++c) {
        grad_weight[c] += sum_weight[c];
        grad_bias[c] += sum_bias[c];
      }
    }
  }
}

}  // namespace EARLYBERT_ISA
#endif

}  // namespace earlybert
