// One step of LAMB (You et al., arXiv 1904.00962, algorithm 2), or of AdamW, over many tensors at once.
#pragma once

#include <cstdint>

#include "instruction_sets.h"

namespace earlybert {

struct OptimizerTensor {
  int64_t size;
  float* parameter;       // all of them `size` floats without gaps
  const float* gradient;
  float* exp_avg;
  float* exp_avg_sq;
  // What undoes the moments' bias towards 0: m_hat = m * scale, sqrt(v_hat) = sqrt(v) * sqrt_scale.
  float exp_avg_scale;
  float exp_avg_sq_sqrt_scale;
};

struct OptimizerStep {
  const OptimizerTensor* tensors;
  int64_t count;
  float lr, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay;
  bool adapt;             // by each tensor's trust ratio; else that is 1
  float l1;               // factor of sign(parameter), which is added to the gradient
  float gradient_factor;  // of the gradient before that
};

// Returns false when memory for scratch could not be had; nothing has been written then. The same for any number of
// threads.
#define EARLYBERT_DECLARE(ISA)               \
  namespace ISA {                            \
  bool optimizer_step(const OptimizerStep&); \
  }
EARLYBERT_FOR_EACH_ISA(EARLYBERT_DECLARE)
#undef EARLYBERT_DECLARE

}  // namespace earlybert
