#include "attention.h"

#include <cmath>

#include "attention_tile.cuh"
#include "launch.cuh"

namespace earlybert {
namespace {

// A block has one head of one sequence, and of its rows up to 16 a warp. What those rows meet is in shared memory as a
// whole. Forward: queries meet keys and values. Backward has blocks of two kinds, each with 16 rows' sums in registers
// until the end, so that nothing is added atomically and no block waits for another:
//   queries that meet keys and values, for grad_q, and keys that meet queries and gradients, for grad_k and grad_v.
// Scores are computed by both: 7 products instead of 5, where short sequences leave tensor cores waiting for memory.
//
// The products are mma.sync on every architecture. In sm_90a code a step of forward, 16 rows of 64 values and 64 keys,
// issues about 900 other instructions for its 64 products, 500 of them for dropout; these take a scheduler longer than
// the products take its tensor core (some 400 cycles), so that wgmma, which would take 260, has nothing to save.
constexpr int kMostThreads = 256;
constexpr int kForwardStep = 64, kBackwardStep = 32;  // others at a time; what is left over, 16 at a time

struct Constants {
  float scale, base_2_scale;  // exponentials are cheapest to base 2
  float kept_scale;
  uint32_t threshold;
  int tiles;  // blocks that share a sequence
};

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// The head, sequence and tile of a block. Heads run fastest: those of a token lie side by side in memory.
struct Place {
  int head, tile, sequence, count_q, count_k;
  int64_t first_q, first_k;

  __device__ __forceinline__ Place(const AttentionProblem& p, unsigned block, int tiles) {
    const auto heads = static_cast<unsigned>(p.heads);
    head = block % heads;
    tile = block / heads % tiles;
    sequence = block / heads / tiles;
    first_q = p.cu_seqlens_q[sequence];
    count_q = static_cast<int>(p.cu_seqlens_q[sequence + 1] - first_q);
    first_k = p.cu_seqlens[sequence];
    count_k = static_cast<int>(p.cu_seqlens[sequence + 1] - first_k);
  }

  template <typename T>
  __device__ __forceinline__ T* of_queries(const Heads& heads, int row) const {
    return static_cast<T*>(heads.data) + (first_q + row) * heads.token + head * heads.head;
  }
  template <typename T>
  __device__ __forceinline__ T* of_keys(const Heads& heads, int row) const {
    return static_cast<T*>(heads.data) + (first_k + row) * heads.token + head * heads.head;
  }
  // The number of the group of four weights that begins with a query's `key`, which is a multiple of 4.
  __device__ __forceinline__ uint64_t group(const AttentionProblem& p, int query, int key) const {
    return (static_cast<uint64_t>(head) * p.tokens_q + first_q + query) * (p.dropout_width / 4) + key / 4;
  }
  __device__ __forceinline__ bool pruned(const AttentionProblem& p) const {
    return p.head_mask != nullptr && !p.head_mask[head];
  }
  __device__ __forceinline__ float gate(const AttentionProblem& p) const {
    return p.head_gates == nullptr ? 1.0f : p.head_gates[head];
  }
};

// Runs `step` over 0 ... count, kStep at a time and then 16 at a time, as `step(Step<n>{}, first)`. Only the last of the
// short ones can go beyond the count.
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

template <typename T, int kSize>
__global__ void __launch_bounds__(kMostThreads, 2) forward_kernel(const AttentionForward a, const Constants c) {
  const AttentionProblem& p = a.problem;
  const Place at(p, blockIdx.x, c.tiles);
  const int rows = blockDim.x / 32 * kTileRows, begin = at.tile * rows;
  const int end = min(begin + rows, at.count_q);
  if (begin >= end) return;
  const Heads outs{a.out, p.heads * kSize, kSize};
  T* out = at.of_queries<T>(outs, begin);
  float* logsumexp = a.logsumexp + at.head * p.tokens_q + at.first_q + begin;
  if (at.pruned(p) || at.count_k == 0) {
    if (p.zero_pruned || at.count_k == 0) {
      zero_rows<T, kSize>(out, outs.token, 0, end - begin);
      for (int row = threadIdx.x; row < end - begin; row += blockDim.x) store_result(logsumexp + row, 0.0f);
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
    if (p.seed != nullptr) {
      const Kept kept = kept_by_query<kKeys>(seed, c.threshold, at.group(p, begin + row, first), p.dropout_width / 4);
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) weights[n][i] = kept(n, i) ? weights[n][i] : 0.0f;
      }
    }
    add_times<kKeys>(sums, weights, values, first);
  });

  const float factor = at.gate(p) * c.kept_scale;
  total[0] = quad_sum(total[0]);
  total[1] = quad_sum(total[1]);
  const SharedRows<T, kSize> mine{own.data + row * kSize};
  store_rows(sums, factor / total[0], factor / total[1], mine, out + row * outs.token, outs.token, end - begin - row);
  if (in_quad < 2) {  // two of the lanes that share rows g and g + 8 write one each
    const int query = row + lane_id() / 4 + 8 * in_quad;
    const float sum = in_quad == 0 ? top[0] + log2f(total[0]) : top[1] + log2f(total[1]);
    if (begin + query < end) store_result(logsumexp + query, sum * kLn2);
  }
}

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
  const float factor = at.gate(p) * c.kept_scale;
  float sums[kSize / 8][4] = {};
  in_steps<kBackwardStep>(at.count_k, [&](auto step, int first) {
    constexpr int kKeys = decltype(step)::kOthers;
    float scores[kKeys / 8][4], grad_weights[kKeys / 8][4];
    times_transposed<kKeys>(scores, queries, keys, first);
    times_transposed<kKeys>(grad_weights, grads, values, first);
    Kept kept{{~0u, ~0u, ~0u, ~0u}};
    if (p.seed != nullptr) {
      kept = kept_by_query<kKeys>(seed, c.threshold, at.group(p, begin + row, first), p.dropout_width / 4);
    }
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
    add_times<kKeys>(sums, scores, keys, first);
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
      Kept kept{{~0u, ~0u, ~0u, ~0u}};
      if (p.seed != nullptr) {
        kept = kept_by_key<kQueries>(seed, c.threshold, at.group(p, first, begin + row), p.dropout_width / 4);
      }
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
      add_times<kQueries>(sums_v, grad_weights, grads, first);
      add_times<kQueries>(sums_k, scores, queries, first);
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
__global__ void __launch_bounds__(kMostThreads, kSize == 32 ? 2 : 1) backward_kernel(const AttentionBackward a, const Constants c) {
  const Place at(a.problem, blockIdx.x / 2, c.tiles);
  if (blockIdx.x % 2 == 0) {
    backward_of_keys<T, kSize>(a, c, at);
  } else {
    backward_of_queries<T, kSize>(a, c, at);
  }
}

// Warps of a block whose sequences have up to so many rows of its kind.
int warps_for(int64_t rows) { return rows <= 16 ? 1 : rows <= 32 ? 2 : rows <= 64 ? 4 : 8; }

// How a pass over sequences is cut.
struct Geometry {
  int warps;
  int64_t tiles, shared_rows;

  size_t shared_bytes(int64_t head_size) const { return static_cast<size_t>(shared_rows * head_size) * 2; }
};

Geometry forward_geometry(int64_t max_keys, int64_t max_queries) {
  // Half as many rows as keys, at least, so that enough threads load those.
  const int warps = warps_for(std::max(max_queries, std::min<int64_t>(max_keys / 2, 64)));
  return {warps, blocks_for(max_queries, warps * kTileRows), 2 * up_to_tiles(static_cast<int>(max_keys)) + warps * kTileRows};
}

Geometry backward_geometry(int64_t max_keys, int64_t max_queries) {
  const int64_t most = std::max(max_keys, max_queries);
  const int warps = warps_for(most);
  return {warps, blocks_for(most, warps * kTileRows), 2 * up_to_tiles(static_cast<int>(most)) + 2 * warps * kTileRows};
}

Constants constants_of(const AttentionProblem& p, const Geometry& geometry) {
  const double kept_scale = p.seed == nullptr ? 1.0 : 1.0 / (1.0 - p.dropout_p);
  return {static_cast<float>(p.scale), static_cast<float>(p.scale) * kLog2E, static_cast<float>(kept_scale),
          dropout_threshold(p.dropout_p), static_cast<int>(geometry.tiles)};
}

void check(const Call& call, const AttentionProblem& p, Dtype dtype, int64_t head_size) {
  if (dtype == Dtype::float32) call.fail("it takes half precision");
  if (head_size != 32 && head_size != 64) call.fail("it takes heads of 32 or 64 values");
  if (std::max(p.max_keys, p.max_queries) > kAttentionMaxKeys) call.fail("the sequences are too long");
}

// Calls `body` with the C++ type of a dtype and a head's size.
template <typename Body>
void with_types(Dtype dtype, int64_t head_size, Body body) {
  with_half_type(dtype, [&](auto type) {
    if (head_size == 32) {
      body(type, std::integral_constant<int, 32>{});
    } else {
      body(type, std::integral_constant<int, 64>{});
    }
  });
}

}  // namespace

int64_t attention_max_keys(int device, int64_t head_size) {
  if (head_size != 32 && head_size != 64) return 0;
  int bytes = 0;
  if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 0;
  int64_t keys = kAttentionMaxKeys;
  while (std::max(forward_geometry(keys, keys).shared_bytes(head_size),
                  backward_geometry(keys, keys).shared_bytes(head_size)) > static_cast<size_t>(bytes)) {
    keys -= kTileRows;
  }
  return keys;
}

int64_t attention_tiles(int64_t max_keys, int64_t max_queries) {
  return backward_geometry(max_keys, max_queries).tiles;
}

void attention_forward(const AttentionForward& a, Dtype dtype, int64_t head_size, Launch launch) {
  const AttentionProblem& p = a.problem;
  const Call call(launch, "attention forward",
                  {{"sequences", p.sequences}, {"heads", p.heads}, {"head size", head_size},
                   {"most keys", p.max_keys}, {"most queries", p.max_queries}});
  check(call, p, dtype, head_size);
  const Geometry geometry = forward_geometry(p.max_keys, p.max_queries);
  const int64_t blocks = p.sequences * p.heads * geometry.tiles;
  if (blocks == 0) return;
  with_types(dtype, head_size, [&](auto type, auto size) {
    call.launch(forward_kernel<typename decltype(type)::type, decltype(size)::value>, static_cast<unsigned>(blocks),
                32 * geometry.warps, geometry.shared_bytes(head_size), a, constants_of(p, geometry));
  });
}

void attention_backward(const AttentionBackward& a, Dtype dtype, int64_t head_size, Launch launch) {
  const AttentionProblem& p = a.problem;
  const Call call(launch, "attention backward",
                  {{"sequences", p.sequences}, {"heads", p.heads}, {"head size", head_size},
                   {"most keys", p.max_keys}, {"most queries", p.max_queries}});
  check(call, p, dtype, head_size);
  const Geometry geometry = backward_geometry(p.max_keys, p.max_queries);
  const int64_t blocks = 2 * p.sequences * p.heads * geometry.tiles;
  if (blocks == 0) return;
  with_types(dtype, head_size, [&](auto type, auto size) {
    call.launch(backward_kernel<typename decltype(type)::type, decltype(size)::value>, static_cast<unsigned>(blocks),
                32 * geometry.warps, geometry.shared_bytes(head_size), a, constants_of(p, geometry));
  });
}

}  // namespace earlybert
