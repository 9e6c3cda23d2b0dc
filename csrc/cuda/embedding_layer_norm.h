// out = dropout(LayerNorm(word[ids] + position[ids] + token_type[ids]) * weight + bias) over rows of `cols` values,
// 1 <= cols <= kLayerNormMaxCols.
//
// dtypes (the three tables and out, weight and bias and their gradients) are (T, T) or (T, float32), where T is
// float32, float16 or bfloat16. Arithmetic, mean and rstd are float32. An id outside its table reads nothing: its
// token's row of out and its rstd are NaN, and its keys in backward are those of no row. Nothing synchronises; both
// functions throw std::runtime_error, naming op and sizes, when a launch fails.
#pragma once

#include <cstdint>

#include "launch.h"
#include "layer_norm.h"

namespace earlybert {

struct EmbeddingLayerNormDtypes {
  Dtype table, weight;
};

struct EmbeddingTable {
  const void* rows;    // (count, cols)
  int64_t count;
  const int64_t* ids;  // (tokens,): the row of each token
};

struct EmbeddingTables {
  EmbeddingTable word, position, token_type;
};

struct EmbeddingLayerNormForward {
  int64_t tokens, cols;
  EmbeddingTables tables;
  const void *weight, *bias;  // (cols,)
  const int64_t* seed;        // one value in device memory, or null: no dropout
  double dropout_p, eps;
  void* out;                  // (tokens, cols), of the tables' dtype
  float *mean, *rstd;         // (tokens,); both null: not written
};

// The gradient of a token's sum goes to one row of each table. Which, the keys say, so that `sum_by_key` can add up
// what belongs to a row: position and token type as one key, for of token types there are few, with many tokens each.
struct EmbeddingLayerNormBackward {
  int64_t tokens, cols;
  EmbeddingTables tables;
  const void* grad_out;          // (tokens, cols), of the tables' dtype
  const void* weight;            // (cols,)
  const float *mean, *rstd;      // (tokens,), from forward
  const int64_t* seed;           // as in forward
  double dropout_p;
  int64_t padding_id;            // the row of `word` that gets no gradient, or -1
  void* grad_sum;                // (tokens, cols), of the tables' dtype
  int32_t* word_keys;            // (tokens,): rows of `word`; for none its count
  int32_t* pair_keys;            // (tokens,): row of `position` * types + row of `token_type`; for none rows * types
  void *grad_weight, *grad_bias;  // (cols,)
  float* partials;               // scratch: (2, layer_norm_partials(tokens, cols), cols)
};

void embedding_layer_norm_forward(const EmbeddingLayerNormForward&, EmbeddingLayerNormDtypes, Launch);
void embedding_layer_norm_backward(const EmbeddingLayerNormBackward&, EmbeddingLayerNormDtypes, Launch);

}  // namespace earlybert
