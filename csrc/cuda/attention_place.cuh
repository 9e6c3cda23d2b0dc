// What the blocks of attention's forward and backward have in common: where they are, and how they go through rows.
#pragma once

#include "attention.h"
#include "attention_tile.cuh"

namespace earlybert {
namespace {

constexpr int kMostThreads = 256;

struct Constants {
  float scale, base_2_scale;  // exponentials are cheapest to base 2
  float kept_scale;
  uint32_t threshold;
  int tiles;  // blocks that share a sequence
};

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// The head, sequence and tile of a block. Heads run fastest: those of a token lie side by side in memory.
struct alignas(16) Place {
  int head, tile, sequence, first_q, first_k, count_q, count_k;

  __device__ __forceinline__ Place(const AttentionProblem& p, unsigned block, int tiles) {
    const auto heads = static_cast<unsigned>(p.heads);
    head = block % heads;
    tile = block / heads % tiles;
    sequence = block / heads / tiles;
    first_q = p.cu_seqlens_q[sequence];
    count_q = p.cu_seqlens_q[sequence + 1] - first_q;
    first_k = p.cu_seqlens[sequence];
    count_k = p.cu_seqlens[sequence + 1] - first_k;
  }

  template <typename T>
  __device__ __forceinline__ T* of_queries(const Heads& heads, int row) const {
    return static_cast<T*>(heads.data) + static_cast<int64_t>(first_q + row) * heads.token + head * heads.head;
  }
  template <typename T>
  __device__ __forceinline__ T* of_keys(const Heads& heads, int row) const {
    return static_cast<T*>(heads.data) + static_cast<int64_t>(first_k + row) * heads.token + head * heads.head;
  }
  // The row of a query's weights in the tensor that dropout sees: (heads, tokens_q, keys).
  __device__ __forceinline__ uint64_t row(const AttentionProblem& p, int query) const {
    return static_cast<uint64_t>(head) * p.tokens_q + first_q + query;
  }
  __device__ __forceinline__ bool pruned(const AttentionProblem& p) const {
    return p.head_mask != nullptr && !p.head_mask[head];
  }
  __device__ __forceinline__ float gate(const AttentionProblem& p) const {
    return p.head_gates == nullptr ? 1.0f : p.head_gates[head];
  }
};

// Runs `step` over 0 ... count, kStep at a time and then 16 at a time, as `step(Step<n>{}, first)`. Only the last of
// the short ones can go beyond the count.
template <int kStep>
struct Step {
  static constexpr int kOthers = kStep;

  static __device__ __forceinline__ bool inside(int other, int count) { return kStep > kTileRows || other < count; }
};
template <int kStep, typename Body>
__device__ __forceinline__ void in_steps(int count, Body step) {
  int first = 0;
  for (; first + kStep <= count; first += kStep) step(Step<kStep>{}, first);
  for (; first < count; first += kTileRows) step(Step<kTileRows>{}, first);
}

}  // namespace
}  // namespace earlybert
