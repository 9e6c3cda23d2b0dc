// out = dropout(LayerNorm(sum of one row of each of three tables) * weight + bias): how BERT embeds its tokens.
#pragma once

#include <cstdint>

#include "instruction_sets.h"

namespace earlybert {

struct EmbeddingTable {
  const float* rows;   // of `cols` floats
  const int64_t* ids;  // (tokens,)
  float* grad;         // backward: like rows; only the rows that occur are touched, and added to
};

struct EmbeddingInputs {
  int64_t tokens, cols;
  EmbeddingTable tables[3];  // the first is that of the words
  const float* weight;       // (cols,)
  const int64_t* seed;       // one value, or null: no dropout
  double dropout_p;
};

struct EmbeddingLayerNormForward {
  EmbeddingInputs in;
  const float* bias;   // (cols,)
  double eps;
  float* out;          // (tokens, cols)
  float *mean, *rstd;  // (tokens,); both null: not written
};

struct EmbeddingLayerNormBackward {
  EmbeddingInputs in;
  const float* grad_out;           // (tokens, cols)
  const float *mean, *rstd;        // from forward
  int64_t padding_id;              // the word that gets no gradient; -1 for none
  float *grad_weight, *grad_bias;  // (cols,)
  float* partials;                 // scratch: (layer_norm_blocks(tokens), 2, cols)
  float* scratch;                  // (tokens, 2, cols)
};

#define EARLYBERT_DECLARE(ISA)                                           \
  namespace ISA {                                                        \
  void embedding_layer_norm_forward(const EmbeddingLayerNormForward&);   \
  void embedding_layer_norm_backward(const EmbeddingLayerNormBackward&); \
  }
EARLYBERT_FOR_EACH_ISA(EARLYBERT_DECLARE)
#undef EARLYBERT_DECLARE

}  // namespace earlybert
