// out = LayerNorm(residual + dropout(x)) * weight + bias over rows of `cols` float32 values.
#pragma once

#include <cstdint>

#include "instruction_sets.h"
#include "layer_norm.h"

namespace earlybert {

struct DropoutAddLayerNormForward {
  int64_t rows, cols;
  const float *x, *residual;  // (rows, cols)
  const float *weight, *bias; // (cols,)
  const int64_t* seed;        // one value, or null: no dropout
  double dropout_p, eps;
  float* out;                 // (rows, cols)
  float *mean, *rstd;         // (rows,); both null: not written
};

struct DropoutAddLayerNormBackward {
  int64_t rows, cols;
  const float *grad_out, *x, *residual;  // (rows, cols)
  const float* weight;                   // (cols,)
  const float *mean, *rstd;              // (rows,), from forward
  const int64_t* seed;                   // as in forward
  double dropout_p;
  float* grad_x;                         // (rows, cols); null when seed is null: it equals grad_residual
  float* grad_residual;                  // (rows, cols)
  float *grad_weight, *grad_bias;        // (cols,)
  float* partials;                       // scratch: (layer_norm_blocks(rows), 2, cols)
};

#define EARLYBERT_DECLARE(ISA)                                              \
  namespace ISA {                                                           \
  void dropout_add_layer_norm_forward(const DropoutAddLayerNormForward&);   \
  void dropout_add_layer_norm_backward(const DropoutAddLayerNormBackward&); \
  }
EARLYBERT_FOR_EACH_ISA(EARLYBERT_DECLARE)
#undef EARLYBERT_DECLARE

}  // namespace earlybert
