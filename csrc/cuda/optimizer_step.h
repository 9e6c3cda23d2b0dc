// One step of LAMB (You et al., arXiv 1904.00962, algorithm 2), or of AdamW, over many tensors at once.
//
// Parameters are float32, float16 or bfloat16, gradients of the same dtype or float32; arithmetic and moments are
// float32. Norms are summed in one order, so that results are the same in every run. Nothing synchronises; errors are
// thrown as std::runtime_error that names op and sizes.
#pragma once

#include <cstdint>

#include "launch.h"

namespace earlybert {

struct OptimizerDtypes {
  Dtype parameter, gradient;
};

struct OptimizerTensor {
  int64_t size;
  void* parameter;  // all of them `size` numbers without gaps
  const void* gradient;
  float *exp_avg, *exp_avg_sq;
  const float* step_at;  // the number of the step in device memory, or null: it is `step`
  float step;
};

struct OptimizerStep {
  const OptimizerTensor* tensors;  // in host memory, read before the call returns
  int64_t count;
  const float* lr_at;  // the learning rate in device memory, or null: it is `lr`
  double lr, beta1, beta2, eps, weight_decay;
  double l1;               // factor of sign(parameter), which is added to the gradient
  // The gradient's factor before that in device memory, or null: it is `gradient_factor`.
  const float* gradient_factor_at;
  double gradient_factor;
  bool adapt;       // by each tensor's trust ratio; else that is 1, and everything is done in one pass over memory
  float* partials;  // scratch with `adapt`, else null: (sum of optimizer_step_chunks(size) over the tensors, 2)
};

int64_t optimizer_step_chunks(int64_t size);
void optimizer_step(const OptimizerStep&, OptimizerDtypes, Launch);

}  // namespace earlybert
