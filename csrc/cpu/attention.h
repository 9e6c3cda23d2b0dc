// Attention over packed sequences, each sequence and head alone. Of float32, or of bfloat16: products then take what is
// rounded to it, the weights and their gradients, too, and sum in float32, in which all the rest is computed.
#pragma once

#include <cstdint>

#include "instruction_sets.h"
#include "numbers.h"

namespace earlybert {

// Queries, keys or values: element (token, head, d) is at data[token * token_stride + head * head_stride + d].
struct Heads {
  Numbers data;
  int64_t token_stride, head_stride;
};

// What forward and backward are both given.
struct AttentionInputs {
  int64_t sequences, heads, head_size;
  int64_t tokens_q;
  int64_t longest, longest_q;  // keys and queries in the longest sequence that there is
  int64_t window;  // a query attends to keys at most so many places away; longest or more: to all
  const int32_t *cu_seqlens, *cu_seqlens_q;  // (sequences + 1,)
  Heads q, k, v;  // as grad_out, and the results: all float32, or all bfloat16
  const bool* head_mask;  // (heads,): false is not computed; or null: all are
  const float* head_gates;  // (heads,), or null: 1
  const int64_t* seed;  // one value, or null: no dropout
  double dropout_p;
  float scale;
  Products products;  // Products::float32 if q, k and v are
};

struct AttentionForward {
  AttentionInputs in;
  Numbers out;  // (tokens_q, heads, head_size)
  float* logsumexp;  // (heads, tokens_q), of the scaled scores; 0 for heads that are not computed. Or null
};

struct AttentionBackward {
  AttentionInputs in;
  Numbers grad_out;  // (tokens_q, heads, head_size)
  const float* logsumexp;  // from forward
  Numbers grad_q, grad_k, grad_v;  // contiguous, shaped as q, k and v
  float* grad_gates;  // (sequences, heads): each sequence's part; null without gates
};

// Both return false when memory for the tiles could not be had.
#define EARLYBERT_DECLARE(ISA)                       \
  namespace ISA {                                    \
  bool attention_forward(const AttentionForward&);   \
  bool attention_backward(const AttentionBackward&); \
  }
EARLYBERT_FOR_EACH_ISA(EARLYBERT_DECLARE)
#undef EARLYBERT_DECLARE

}  // namespace earlybert
