// The forward kernel of attention; see attention.cu.
#pragma once

#include <cmath>

#include "attention_place.cuh"
#include "launch.cuh"

namespace earlybert {
namespace {

constexpr int kForwardStep = 64;  // keys at a time

template <typename T, int kSize>
__global__ void __launch_bounds__(kMostThreads, 2) forward_kernel(const AttentionForward a, const Constants c) {
  const AttentionProblem& p = a.problem;
  const Place at(p, blockIdx.x, c.tiles);
  const int rows = blockDim.x / 32 * kTileRows, begin = at.tile * rows;
  const int end = min(begin + rows, at.count_q);
  if (begin >= end) return;
  const Heads outs{a.out, p.heads * kSize, kSize};
  T* out = at.of_queries<T>(outs, begin);
  const auto store_logsumexp = [&](int query, float value) {
    if (a.logsumexp != nullptr) store_result(a.logsumexp + at.head * p.tokens_q + at.first_q + begin + query, value);
  };
  if (at.pruned(p) || at.count_k == 0) {
    if (p.zero_pruned || at.count_k == 0) {
      zero_rows<T, kSize>(out, outs.token, 0, end - begin);
      for (int row = threadIdx.x; row < end - begin; row += blockDim.x) store_logsumexp(row, 0.0f);
    }
    return;
  }

  T* memory = reinterpret_cast<T*>(&shared_memory<uint4>());
  const int key_rows = up_to_tiles(at.count_k);
  const SharedRows<T, kSize> keys{memory}, values{memory + key_rows * kSize}, own{memory + 2 * key_rows * kSize};
  keys.load(at.of_keys<T>(p.k, 0), p.k.token, at.count_k);
  values.load(at.of_keys<T>(p.v, 0), p.v.token, at.count_k);
  own.load(at.of_queries<T>(p.q, begin), p.q.token, end - begin);
  wait_for_copies();
  __syncthreads();
  const int row = warp_id() * kTileRows;
  if (begin + row >= end) return;

  Left<T, kSize> queries;
  queries.load(own, row);
  const uint64_t seed = p.seed == nullptr ? 0 : static_cast<uint64_t>(*p.seed);
  const uint64_t drawn_row = at.row(p, begin + row + lane_id() / 4);
  const int in_quad = lane_id() % 4;
  float sums[kSize / 8][4] = {};
  float top[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};  // of rows g and g + 8
  in_steps<kForwardStep>(at.count_k, [&](auto step, int first) {
    constexpr int kKeys = decltype(step)::kOthers;
    float weights[kKeys / 8][4];
    times_transposed<kKeys>(weights, queries, keys, first);
    float new_top[2] = {top[0], top[1]};
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool there = step.inside(first + n * 8 + in_quad * 2 + i % 2, at.count_k);
        weights[n][i] = there ? weights[n][i] * c.base_2_scale : -INFINITY;
        new_top[i / 2] = fmaxf(new_top[i / 2], weights[n][i]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      new_top[half] = quad_max(new_top[half]);
      const float shrink = exp2_fast(top[half] - new_top[half]);
      top[half] = new_top[half];
      total[half] *= shrink;
#pragma unroll
      for (int n = 0; n < kSize / 8; ++n) {
        sums[n][2 * half] *= shrink;
        sums[n][2 * half + 1] *= shrink;
      }
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weights[n][i] = exp2_fast(weights[n][i] - top[i / 2]);
        total[i / 2] += weights[n][i];
      }
    }
    Pairs<kKeys> pairs = rounded<T, kKeys>(weights);
    if (p.seed != nullptr) drop(pairs, draws_by_query<kKeys>(seed, drawn_row, first), c.threshold);
    add_times(sums, pairs, values, first);
  });

  const float factor = at.gate(p) * c.kept_scale;
  total[0] = quad_sum(total[0]);
  total[1] = quad_sum(total[1]);
  const SharedRows<T, kSize> mine{own.data + row * kSize};
  store_rows(sums, factor / total[0], factor / total[1], mine, out + row * outs.token, outs.token, end - begin - row);
  if (in_quad < 2) {  // two of the lanes that share rows g and g + 8 write one each
    const int query = row + lane_id() / 4 + 8 * in_quad;
    const float sum = in_quad == 0 ? top[0] + log2f(total[0]) : top[1] + log2f(total[1]);
    if (begin + query < end) store_logsumexp(query, sum * kLn2);
  }
}

}  // namespace
}  // namespace earlybert
