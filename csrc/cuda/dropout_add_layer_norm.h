// out = LayerNorm(residual + dropout(x)) * weight + bias over rows of `cols` values, 1 <= cols <= kLayerNormMaxCols.
//
// dtypes (x, residual and out, weight and bias and their gradients) are one of
//   (T, T, T), (T, T, float32) or (T, float32, float32), where T is float32, float16 or bfloat16.
// Arithmetic, mean and rstd are float32. Nothing synchronises; both functions throw std::runtime_error,
// naming op and sizes, when a launch fails.
#pragma once

#include <cstdint>

#include "launch.h"
#include "layer_norm.h"

namespace earlybert {

struct DropoutAddLayerNormDtypes {
  Dtype x, residual, weight;
};

struct DropoutAddLayerNormForward {
  int64_t rows, cols;
  const void *x, *residual;   // (rows, cols)
  const void *weight, *bias;  // (cols,)
  const int64_t* seed;        // one value in device memory, or null: no dropout
  double dropout_p, eps;
  void* out;                  // (rows, cols), of residual's dtype
  void* out_cast;             // (rows, cols), out in x's dtype, or null; null where that is its own
  float *mean, *rstd;         // (rows,); both null: not written
};

struct DropoutAddLayerNormBackward {
  int64_t rows, cols;
  const void *grad_out, *x, *residual;  // (rows, cols); grad_out is of residual's dtype
  const void* weight;                   // (cols,)
  const float *mean, *rstd;             // (rows,), from forward
  const int64_t* seed;                  // as in forward
  double dropout_p;
  void* grad_x;                         // (rows, cols), or null when it would equal grad_residual
  void* grad_residual;                  // (rows, cols)
  void* residual_cast;                  // (rows, cols), residual in x's dtype, or null; null where that is its own
  void *grad_weight, *grad_bias;        // (cols,)
  void* grad_x_columns;                 // (cols,), of x's dtype: the column sums of grad_x before it is rounded
  float* partials;                      // scratch: (3, layer_norm_partials(rows, cols), cols)
};

void dropout_add_layer_norm_forward(const DropoutAddLayerNormForward&, DropoutAddLayerNormDtypes, Launch);
void dropout_add_layer_norm_backward(const DropoutAddLayerNormBackward&, DropoutAddLayerNormDtypes, Launch);

}  // namespace earlybert
