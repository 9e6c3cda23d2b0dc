// What stands between the two products of a feed-forward block: h = gates * act(y), and its backward in one pass.
//
// y holds the bias already: the vendor's library adds it in the product's epilogue, before rounding, for no byte of
// traffic. Here it would cost none either, but it would be added to rounded values, and backward would need it again.
// Gates, on the other hand, come here and not into the weight behind: in this pass they and their gradients are free,
// while folding them reads and writes that weight three times in a step.
//
// dtypes: y, h and their gradients are float32, float16 or bfloat16; gates, sums and arithmetic are float32. Sums are
// the same in every run and on every GPU. Nothing synchronises; both functions throw std::runtime_error, naming op
// and sizes, when a launch fails or sizes are not supported.
#pragma once

#include <cstdint>

#include "../common/activation.h"
#include "launch.h"

namespace earlybert {

struct ActivationForward {
  int64_t rows, cols;
  const void* y;       // (rows, cols)
  const float* gates;  // (cols,), or null: 1
  void* h;             // (rows, cols)
};

struct ActivationBackward {
  int64_t rows, cols;
  void* grad;          // (rows, cols): the gradient of h, over which that of y is written
  const void* y;       // (rows, cols)
  const float* gates;  // as in forward
  void* h;             // (rows, cols): what forward gave, once more
  void* grad_bias;     // (cols,), of y's dtype: the sums of y's gradient over the rows
  float* grad_gates;   // (cols,), or null where there are no gates
  float* partials;     // scratch: (1, or 2 with gates, activation_partials(rows, cols), cols)
};

int64_t activation_partials(int64_t rows, int64_t cols);
void activation_forward(const ActivationForward&, Activation, Dtype, Launch);
void activation_backward(const ActivationBackward&, Activation, Dtype, Launch);

}  // namespace earlybert
