// All layers of an encoder whose sublayers end with a norm, forward alone, by one call: for few tokens, calling every
// part of every layer from Python would take as long as computing it. The parts are those of the sublayers' ops.
#pragma once

#include <cstdint>

#include "../common/activation.h"
#include "instruction_sets.h"

namespace earlybert {

struct Linear {
  const float *weight, *bias;  // (out, in) and (out,)
};

struct Norm {
  const float *weight, *bias;  // (hidden,)
  double eps;
};

struct EncoderLayer {
  int64_t heads, neurons;
  Linear query, key, value, attention_output;
  Norm attention_norm;
  Linear intermediate, output;
  Norm output_norm;
};

struct EncoderForward {
  int64_t sequences, tokens, longest, hidden, head_size;
  double scale;                // of the scores
  const int32_t* cu_seqlens;   // (sequences + 1,)
  const EncoderLayer* layers;  // of one head size and activation
  int64_t layer_count;
  Activation activation;
  bool first_token_only;       // the last layer computes the first token of each sequence; none is then empty
  const float* x;              // (tokens, hidden)
  float* out;                  // the same, or (sequences, hidden)
};

// Returns false when memory for scratch could not be had.
#define EARLYBERT_DECLARE(ISA)                 \
  namespace ISA {                              \
  bool encoder_forward(const EncoderForward&); \
  }
EARLYBERT_FOR_EACH_ISA(EARLYBERT_DECLARE)
#undef EARLYBERT_DECLARE

}  // namespace earlybert
