#include "dropout_add_layer_norm.h"

#include "dropout.h"

namespace earlybert {
namespace EARLYBERT_ISA {

// Below this many elements waking the other threads costs more than they save.
static constexpr int64_t kParallelElements = 16384;

// Columns that one thread reduces at a time in the second stage of the parameter gradients.
static constexpr int64_t kReduceCols = 64;

void dropout_add_layer_norm_forward(const DropoutAddLayerNormForward& a) {
  const int64_t rows = a.rows, cols = a.cols;
  const bool dropping = a.seed != nullptr;
  const Dropout dropout = make_dropout(dropping ? static_cast<uint64_t>(*a.seed) : 0, a.dropout_p);
  const float* __restrict weight = a.weight;
  const float* __restrict bias = a.bias;

#pragma omp parallel for schedule(static) if (rows * cols >= kParallelElements)
  for (int64_t r = 0; r < rows; ++r) {
    const float* __restrict x = a.x + r * cols;
    const float* __restrict residual = a.residual + r * cols;
    float* __restrict out = a.out + r * cols;  // also the row's scratch: it stays in the nearest cache

    float sum = 0.0f;
    if (dropping) {
      dropout_scales(dropout, static_cast<uint64_t>(r * cols), cols, out);
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < cols; ++c) {
        out[c] = residual[c] + x[c] * out[c];
        sum += out[c];
      }
    } else {
#pragma omp simd reduction(+ : sum)
      for (int64_t c = 0; c < cols; ++c) {
        out[c] = residual[c] + x[c];
        sum += out[c];
      }
    }
    const float mean = sum / static_cast<float>(cols);

    // A second pass, because mean(h^2) - mean(h)^2 cancels when the mean is large.
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < cols; ++c) {
      const float centred = out[c] - mean;
      squares += centred * centred;
    }
    const float variance = squares / static_cast<float>(cols);
    const float rstd = 1.0f / __builtin_sqrtf(variance + static_cast<float>(a.eps));

#pragma omp simd
    for (int64_t c = 0; c < cols; ++c) out[c] = (out[c] - mean) * rstd * weight[c] + bias[c];
    a.mean[r] = mean;
    a.rstd[r] = rstd;
  }
}

// One row of backward; adds to sum_weight and sum_bias.
static inline void backward_row(const DropoutAddLayerNormBackward& a, const Dropout& dropout, int64_t r,
                                float* __restrict sum_weight, float* __restrict sum_bias) {
  const int64_t cols = a.cols;
  const float* __restrict grad_out = a.grad_out + r * cols;
  const float* __restrict x = a.x + r * cols;
  const float* __restrict residual = a.residual + r * cols;
  const float* __restrict weight = a.weight;
  float* __restrict grad_residual = a.grad_residual + r * cols;
  const float mean = a.mean[r], rstd = a.rstd[r];

  // The outputs' rows are the scratch: first grad_residual holds h and grad_x the dropout scales.
  if (a.seed != nullptr) {
    float* __restrict scales = a.grad_x + r * cols;
    dropout_scales(dropout, static_cast<uint64_t>(r * cols), cols, scales);
#pragma omp simd
    for (int64_t c = 0; c < cols; ++c) grad_residual[c] = residual[c] + x[c] * scales[c];
  } else {
#pragma omp simd
    for (int64_t c = 0; c < cols; ++c) grad_residual[c] = residual[c] + x[c];
  }

  float sum = 0.0f, sum_normalised = 0.0f;
#pragma omp simd reduction(+ : sum, sum_normalised)
  for (int64_t c = 0; c < cols; ++c) {
    const float normalised = (grad_residual[c] - mean) * rstd;
    const float grad = grad_out[c] * weight[c];
    sum += grad;
    sum_normalised += grad * normalised;
    sum_weight[c] += grad_out[c] * normalised;
    sum_bias[c] += grad_out[c];
    grad_residual[c] = normalised;
  }
  const float average = sum / static_cast<float>(cols);
  const float average_normalised = sum_normalised / static_cast<float>(cols);

#pragma omp simd
  for (int64_t c = 0; c < cols; ++c) {
    grad_residual[c] = rstd * (grad_out[c] * weight[c] - average - grad_residual[c] * average_normalised);
  }
  if (a.seed != nullptr) {
    float* __restrict grad_x = a.grad_x + r * cols;
#pragma omp simd
    for (int64_t c = 0; c < cols; ++c) grad_x[c] *= grad_residual[c];
  }
}

void dropout_add_layer_norm_backward(const DropoutAddLayerNormBackward& a) {
  const int64_t rows = a.rows, cols = a.cols;
  const Dropout dropout = make_dropout(a.seed != nullptr ? static_cast<uint64_t>(*a.seed) : 0, a.dropout_p);
  const int64_t block_rows = dropout_add_layer_norm_block_rows(rows);
  const int64_t blocks = dropout_add_layer_norm_blocks(rows);

#pragma omp parallel if (rows * cols >= kParallelElements)
  {
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
      float* __restrict sum_weight = a.partials + block * 2 * cols;
      float* __restrict sum_bias = sum_weight + cols;
      for (int64_t c = 0; c < 2 * cols; ++c) sum_weight[c] = 0.0f;
      const int64_t end = (block + 1) * block_rows < rows ? (block + 1) * block_rows : rows;
      for (int64_t r = block * block_rows; r < end; ++r) backward_row(a, dropout, r, sum_weight, sum_bias);
    }
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < cols; begin += kReduceCols) {
      const int64_t end = begin + kReduceCols < cols ? begin + kReduceCols : cols;
      for (int64_t c = begin; c < end; ++c) a.grad_weight[c] = a.grad_bias[c] = 0.0f;
      for (int64_t block = 0; block < blocks; ++block) {
        const float* __restrict sum_weight = a.partials + block * 2 * cols;
        const float* __restrict sum_bias = sum_weight + cols;
#pragma omp simd
        for (int64_t c = begin; c < end; ++c) {
          a.grad_weight[c] += sum_weight[c];
          a.grad_bias[c] += sum_bias[c];
        }
      }
    }
  }
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
