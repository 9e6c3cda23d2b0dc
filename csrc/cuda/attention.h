// Attention over packed sequences in half precision, for heads of 32 or 64 values and sequences that fit into shared
// memory as a whole (see attention_max_keys).
//
// out_h = gate_h * dropout(softmax(scale * q_h k_h^T)) v_h within each sequence. Repeated runs give the same bits.
// Nothing synchronises; both functions throw std::runtime_error, naming op and sizes, when a launch fails.
#pragma once

#include <cstdint>

#include "launch.h"

namespace earlybert {

constexpr int64_t kAttentionMaxKeys = 512;

// (tokens, heads, head_size), a head's values side by side. data, 2 * token and 2 * head are multiples of 16 bytes.
struct Heads {
  void* data;
  int64_t token, head;  // values from one token, one head to the next
};

// What forward and backward have in common.
struct AttentionProblem {
  Heads q, k, v;
  const int32_t *cu_seqlens, *cu_seqlens_q;  // (sequences + 1,): where the keys and the queries of each one begin
  const bool* head_mask;                     // (heads,), or null: all are computed
  const float* head_gates;                   // (heads,), or null: 1
  const int64_t* seed;                       // one value in device memory, or null: no dropout
  int64_t sequences, heads, tokens_q;
  int64_t max_keys, max_queries;             // of a sequence
  double dropout_p, scale;
  bool zero_pruned;                          // write zeros for pruned heads, or nothing at all
};

struct AttentionForward {
  AttentionProblem problem;
  void* out;         // (tokens_q, heads, head_size), contiguous
  float* logsumexp;  // (heads, tokens_q); or null
};

struct AttentionBackward {
  AttentionProblem problem;
  Heads grad_out;
  const void* out;                 // from forward
  const float* logsumexp;
  Heads grad_q, grad_k, grad_v;
  float* grad_gates;               // (sequences * AttentionParts::count, heads) parts of a sum; or null
  float* workspace;                // AttentionParts::workspace values, multiples of 16 bytes; or null
};

// The longest sequences that the device's blocks have shared memory for, forward and backward; 0 for other head sizes.
int64_t attention_max_keys(int device, int64_t head_size);

// How backward cuts sequences: how many blocks have a head of one, and how many float32 they need to add grad_q up.
struct AttentionParts {
  int64_t count, workspace;
};
AttentionParts attention_parts(int device, const AttentionProblem&, int64_t head_size);

void attention_forward(const AttentionForward&, Dtype, int64_t head_size, Launch);
void attention_backward(const AttentionBackward&, Dtype, int64_t head_size, Launch);

}  // namespace earlybert
