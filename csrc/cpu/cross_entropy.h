// The cross-entropy of rows of logits against a label each, the gradient written over the logits.
#pragma once

#include <cstdint>

#include "instruction_sets.h"

namespace earlybert {

struct CrossEntropy {
  int64_t rows, cols;
  float* logits;          // (rows, cols); becomes (softmax - one-hot label) * scale
  const int64_t* labels;  // (rows,), within the columns
  float scale;
  float* losses;          // (rows,): log-sum-exp - the label's logit
};

#define EARLYBERT_DECLARE(ISA)             \
  namespace ISA {                          \
  void cross_entropy(const CrossEntropy&); \
  }
EARLYBERT_FOR_EACH_ISA(EARLYBERT_DECLARE)
#undef EARLYBERT_DECLARE

}  // namespace earlybert
