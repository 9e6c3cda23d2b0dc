// The backward kernel of attention; see attention.cu.
#pragma once

#include "attention_place.cuh"
#include "launch.cuh"

namespace earlybert {
namespace {

constexpr int kBackwardStep = 32;  // keys or queries at a time

// What the two kinds of blocks of backward compute for a tile, from scores and the products of gradients and values:
// weights, dropped ones (which make grad_v), and the scores' gradients. With P = softmax(scores), F what dropout does,
// c the gate, G the output's gradient:
//   grad_scores = P (c F (G v^T) - delta), delta = c rowsum(P F (G v^T)) = rowsum(G * out).
struct Weight {
  float dropped, grad_score;

  __device__ __forceinline__ Weight(float score, float grad_weight, float base_2_scale, float logsumexp, float delta,
                                    float factor, bool there, bool kept) {
    const float weight = there ? exp2_fast(score * base_2_scale - logsumexp) : 0.0f;
    dropped = kept ? weight : 0.0f;
    grad_score = weight * ((kept ? grad_weight * factor : 0.0f) - delta);
  }
};

template <typename T, int kSize>
__device__ __forceinline__ void backward_of_queries(const AttentionBackward& a, const Constants& c, const Place& at) {
  const AttentionProblem& p = a.problem;
  const int rows = blockDim.x / 32 * kTileRows, begin = at.tile * rows;
  const int end = min(begin + rows, at.count_q);
  if (begin >= end) return;
  T* grad_q = at.of_queries<T>(a.grad_q, begin);
  if (at.pruned(p) || at.count_k == 0) {
    if (p.zero_pruned || at.count_k == 0) zero_rows<T, kSize>(grad_q, a.grad_q.token, 0, end - begin);
    return;
  }

  T* memory = reinterpret_cast<T*>(&shared_memory<uint4>());
  const int key_rows = up_to_tiles(at.count_k);
  const SharedRows<T, kSize> keys{memory}, values{memory + key_rows * kSize};
  const SharedRows<T, kSize> own_q{memory + 2 * key_rows * kSize}, own_grad{own_q.data + rows * kSize};
  keys.load(at.of_keys<T>(p.k, 0), p.k.token, at.count_k);
  values.load(at.of_keys<T>(p.v, 0), p.v.token, at.count_k);
  own_q.load(at.of_queries<T>(p.q, begin), p.q.token, end - begin);
  own_grad.load(at.of_queries<T>(a.grad_out, begin), a.grad_out.token, end - begin);
  wait_for_copies();
  __syncthreads();
  const int row = warp_id() * kTileRows;
  if (begin + row >= end) return;

  Left<T, kSize> queries, grads;
  queries.load(own_q, row);
  grads.load(own_grad, row);
  const int g = lane_id() / 4, in_quad = lane_id() % 4;
  float logsumexp[2] = {}, delta[2] = {};  // of rows g and g + 8
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = begin + row + g + 8 * half;
    if (query < end) {
      logsumexp[half] = a.logsumexp[at.head * p.tokens_q + at.first_q + query] * kLog2E;
      const T* out = static_cast<const T*>(a.out) + ((at.first_q + query) * p.heads + at.head) * kSize;
#pragma unroll
      for (int n = 0; n < kSize / 8; ++n) {
        const float2 y = unpack<T>(*reinterpret_cast<const uint32_t*>(out + n * 8 + in_quad * 2));
        const float2 grad = unpack<T>(grads.a[n / 2][half + n % 2 * 2]);
        delta[half] += y.x * grad.x + y.y * grad.y;
      }
    }
    delta[half] = quad_sum(delta[half]);
  }

  const uint64_t seed = p.seed == nullptr ? 0 : static_cast<uint64_t>(*p.seed);
  const uint64_t drawn_row = at.row(p, begin + row + g);
  const float factor = at.gate(p) * c.kept_scale;
  float sums[kSize / 8][4] = {};
  in_steps<kBackwardStep>(at.count_k, [&](auto step, int first) {
    constexpr int kKeys = decltype(step)::kOthers;
    float scores[kKeys / 8][4], grad_weights[kKeys / 8][4];
    times_transposed<kKeys>(scores, queries, keys, first);
    times_transposed<kKeys>(grad_weights, grads, values, first);
    Kept<kKeys, false> kept{{}, c.threshold};
    if (p.seed != nullptr) kept.draws = draws_by_query<kKeys>(seed, drawn_row, first);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool there = step.inside(first + n * 8 + in_quad * 2 + i % 2, at.count_k);
        scores[n][i] = Weight(scores[n][i], grad_weights[n][i], c.base_2_scale, logsumexp[i / 2], delta[i / 2], factor,
                              there, kept(n, i))
                           .grad_score;
      }
    }
    add_times(sums, rounded<T, kKeys>(scores), keys, first);
  });
  const SharedRows<T, kSize> mine{own_q.data + row * kSize};
  store_rows(sums, c.scale, c.scale, mine, grad_q + row * a.grad_q.token, a.grad_q.token, end - begin - row);
}

// Of every query of the sequence: its logsumexp in base 2 and its delta.
template <typename T, int kSize>
__device__ __forceinline__ void gather_statistics(const AttentionBackward& a, const Place& at,
                                                  const SharedRows<T, kSize>& grads, float* logsumexps, float* deltas) {
  constexpr int kLanes = SharedRows<T, kSize>::kChunks;  // that share a row
  const AttentionProblem& p = a.problem;
  const int number = threadIdx.x % kLanes, query_rows = up_to_tiles(at.count_q);
  for (int row = threadIdx.x / kLanes; row < query_rows; row += blockDim.x / kLanes) {
    float delta = 0.0f;
    if (row < at.count_q) {
      const T* out = static_cast<const T*>(a.out) + ((at.first_q + row) * p.heads + at.head) * kSize + number * 8;
      const uint4 y = *reinterpret_cast<const uint4*>(out);
      const uint4 grad = *reinterpret_cast<const uint4*>(grads.chunk(row, number));
      const uint32_t ys[4] = {y.x, y.y, y.z, y.w}, gs[4] = {grad.x, grad.y, grad.z, grad.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 u = unpack<T>(ys[i]), v = unpack<T>(gs[i]);
        delta += u.x * v.x + u.y * v.y;
      }
    }
    // The rows of a warp are all there or none: 32 / kLanes divides 16.
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      delta += __shfl_xor_sync(0xFFFFFFFFu, delta, distance);
    }
    if (number == 0) {
      deltas[row] = delta;
      logsumexps[row] =
          row < at.count_q ? a.logsumexp[at.head * p.tokens_q + at.first_q + row] * kLog2E : 0.0f;
    }
  }
}

template <typename T, int kSize>
__device__ __forceinline__ void backward_of_keys(const AttentionBackward& a, const Constants& c, const Place& at) {
  const AttentionProblem& p = a.problem;
  const int rows = blockDim.x / 32 * kTileRows, begin = at.tile * rows;
  const int end = min(begin + rows, at.count_k);
  float* grad_gate = nullptr;
  if (a.grad_gates != nullptr) {
    grad_gate = a.grad_gates + (static_cast<int64_t>(at.sequence) * c.tiles + at.tile) * p.heads + at.head;
  }
  if (begin >= end || at.pruned(p) || at.count_q == 0) {
    if (grad_gate != nullptr && threadIdx.x == 0) store_result(grad_gate, 0.0f);
    if (begin < end && (p.zero_pruned || !at.pruned(p))) {
      zero_rows<T, kSize>(at.of_keys<T>(a.grad_k, begin), a.grad_k.token, 0, end - begin);
      zero_rows<T, kSize>(at.of_keys<T>(a.grad_v, begin), a.grad_v.token, 0, end - begin);
    }
    return;
  }

  T* memory = reinterpret_cast<T*>(&shared_memory<uint4>());
  const int query_rows = up_to_tiles(at.count_q);
  const SharedRows<T, kSize> queries{memory}, grads{memory + query_rows * kSize};
  const SharedRows<T, kSize> own_k{memory + 2 * query_rows * kSize}, own_v{own_k.data + rows * kSize};
  queries.load(at.of_queries<T>(p.q, 0), p.q.token, at.count_q);
  grads.load(at.of_queries<T>(a.grad_out, 0), a.grad_out.token, at.count_q);
  own_k.load(at.of_keys<T>(p.k, begin), p.k.token, end - begin);
  own_v.load(at.of_keys<T>(p.v, begin), p.v.token, end - begin);
  wait_for_copies();
  __syncthreads();

  const int row = warp_id() * kTileRows;
  const bool has_rows = begin + row < end;  // the others help with what the block does together
  Left<T, kSize> keys, values;
  if (has_rows) {
    keys.load(own_k, row);
    values.load(own_v, row);
  }
  __syncthreads();
  // The block's own rows are in registers: their place is free until results are written.
  float *logsumexps = reinterpret_cast<float*>(own_k.data), *deltas = logsumexps + query_rows;
  gather_statistics(a, at, grads, logsumexps, deltas);
  __syncthreads();

  const uint64_t seed = p.seed == nullptr ? 0 : static_cast<uint64_t>(*p.seed);
  const float factor = at.gate(p) * c.kept_scale;
  const int g = lane_id() / 4, in_quad = lane_id() % 4;
  float sums_k[kSize / 8][4] = {}, sums_v[kSize / 8][4] = {};
  if (has_rows) {
    in_steps<kBackwardStep>(at.count_q, [&](auto step, int first) {
      constexpr int kQueries = decltype(step)::kOthers;
      float scores[kQueries / 8][4], grad_weights[kQueries / 8][4];
      times_transposed<kQueries>(scores, keys, queries, first);
      times_transposed<kQueries>(grad_weights, values, grads, first);
      Kept<kQueries, true> kept{{}, c.threshold};
      if (p.seed != nullptr) kept.draws = draws_by_key<kQueries>(seed, at.row(p, first), begin + row);
#pragma unroll
      for (int n = 0; n < kQueries / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int query = first + n * 8 + in_quad * 2 + i % 2;
          const Weight weight(scores[n][i], grad_weights[n][i], c.base_2_scale, logsumexps[query], deltas[query],
                              factor, step.inside(query, at.count_q), kept(n, i));
          scores[n][i] = weight.grad_score;
          grad_weights[n][i] = weight.dropped;
        }
      }
      add_times(sums_v, rounded<T, kQueries>(grad_weights), grads, first);
      add_times(sums_k, rounded<T, kQueries>(scores), queries, first);
    });
  }
  __syncthreads();  // nobody needs the statistics any more
  if (grad_gate != nullptr) {
    float sum = 0.0f;
    if (has_rows) {
#pragma unroll
      for (int n = 0; n < kSize / 8; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float2 v = unpack<T>(values.a[n / 2][half + n % 2 * 2]);
          // Rows behind the sequence's end are no numbers to count on.
          if (begin + row + g + 8 * half < end) sum += sums_v[n][2 * half] * v.x + sums_v[n][2 * half + 1] * v.y;
        }
      }
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, distance);
    float* of_warps = reinterpret_cast<float*>(queries.data);  // which nobody needs either
    if (lane_id() == 0) of_warps[warp_id()] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int warp = 1; warp < static_cast<int>(blockDim.x / 32); ++warp) sum += of_warps[warp];
      store_result(grad_gate, sum * c.kept_scale);
    }
  }
  if (!has_rows) return;
  const SharedRows<T, kSize> mine{own_k.data + row * kSize};
  store_rows(sums_k, c.scale, c.scale, mine, at.of_keys<T>(a.grad_k, begin + row), a.grad_k.token, end - begin - row);
  store_rows(sums_v, factor, factor, mine, at.of_keys<T>(a.grad_v, begin + row), a.grad_v.token, end - begin - row);
}

template <typename T, int kSize>
__global__ void __launch_bounds__(kMostThreads, kSize == 32 ? 2 : 1)
    backward_kernel(const AttentionBackward a, const Constants c) {
  const Place at(a.problem, blockIdx.x / 2, c.tiles);
  if (blockIdx.x % 2 == 0) {
    backward_of_keys<T, kSize>(a, c, at);
  } else {
    backward_of_queries<T, kSize>(a, c, at);
  }
}

}  // namespace
}  // namespace earlybert
