#include "dropout_add_layer_norm.h"

#include "dropout.h"

namespace earlybert {
namespace EARLYBERT_ISA {

// Below this many elements waking the other threads costs more than they save.
static constexpr int64_t kParallelElements = 16384;

void dropout_add_layer_norm_forward(const DropoutAddLayerNormForward& a) {
  const int64_t rows = a.rows, cols = a.cols;
  const bool dropping = a.seed != nullptr;
  const Dropout dropout = make_dropout(dropping ? static_cast<uint64_t>(*a.seed) : 0, a.dropout_p);

#pragma omp parallel for schedule(static) if (rows * cols >= kParallelElements)
  for (int64_t r = 0; r < rows; ++r) {
    const float* __restrict x = a.x + r * cols;
    const float* __restrict residual = a.residual + r * cols;
    float* __restrict out = a.out + r * cols;  // also the row's scratch: it stays in the nearest cache

    float sum = 0.0f;
    if (dropping) {
      dropout_scales(dropout, static_cast<uint64_t>(r), 0, cols, out);
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
    layer_norm_row(out, sum, cols, a.weight, a.bias, static_cast<float>(a.eps), r, a.mean, a.rstd);
  }
}

// One row of backward; adds to sum_weight and sum_bias.
static inline void backward_row(const DropoutAddLayerNormBackward& a, const Dropout& dropout, int64_t r,
                                float* sum_weight, float* sum_bias) {
  const int64_t cols = a.cols;
  const float* __restrict x = a.x + r * cols;
  const float* __restrict residual = a.residual + r * cols;
  float* __restrict grad_residual = a.grad_residual + r * cols;

  // The outputs' rows are the scratch: first grad_residual holds the norm's argument and grad_x the dropout scales.
  if (a.seed != nullptr) {
    float* __restrict scales = a.grad_x + r * cols;
    dropout_scales(dropout, static_cast<uint64_t>(r), 0, cols, scales);
#pragma omp simd
    for (int64_t c = 0; c < cols; ++c) grad_residual[c] = residual[c] + x[c] * scales[c];
  } else {
#pragma omp simd
    for (int64_t c = 0; c < cols; ++c) grad_residual[c] = residual[c] + x[c];
  }
  layer_norm_backward_row(grad_residual, a.grad_out + r * cols, cols, a.weight, a.mean[r], a.rstd[r], sum_weight,
                          sum_bias);
  if (a.seed != nullptr) {
    float* __restrict grad_x = a.grad_x + r * cols;
#pragma omp simd
    for (int64_t c = 0; c < cols; ++c) grad_x[c] *= grad_residual[c];
  }
}

void dropout_add_layer_norm_backward(const DropoutAddLayerNormBackward& a) {
  const Dropout dropout = make_dropout(a.seed != nullptr ? static_cast<uint64_t>(*a.seed) : 0, a.dropout_p);
#pragma omp parallel if (a.rows * a.cols >= kParallelElements)
  layer_norm_backward_rows(
      a.rows, a.cols, a.partials, a.grad_weight, a.grad_bias,
      [&](int64_t r, float* sum_weight, float* sum_bias) { backward_row(a, dropout, r, sum_weight, sum_bias); });
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
