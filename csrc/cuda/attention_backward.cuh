// The backward kernels of attention; see attention.cu.
#pragma once

#include <cmath>

#include "attention_place.cuh"
#include "launch.cuh"

namespace earlybert {
namespace {

constexpr int kBackwardThreads = 128;
constexpr int kWarpTiles = 2, kWarpKeys = kWarpTiles * kTileRows;  // of a warp: two tiles, which share what they meet
constexpr int kQueries = 32;  // of a step
constexpr int kPieceColumns = 32;  // of grad_q, which is made in pieces of 16 rows

EARLYBERT_HOST_DEVICE constexpr int up_to_queries(int count) { return (count + kQueries - 1) / kQueries * kQueries; }

// A block's shared memory: its place, two steps' queries, what each warp has, and the statistics of all queries.
// Offsets that are known when it is compiled save registers.
template <typename T, int kSize>
struct BackwardMemory {
  static constexpr int kStepValues = 2 * kQueries * kSize;
  static constexpr int kOfKeys = kWarpKeys * (2 * kSize + kQueries), kOfPiece = kTileRows * kPieceColumns;
  static constexpr int kWarpValues = kOfKeys + kOfPiece + 8;

  static size_t bytes(int warps, int64_t queries) {
    return sizeof(Place) + (2 * kStepValues + warps * kWarpValues) * sizeof(T) +
           2 * up_to_queries(static_cast<int>(queries)) * sizeof(float);
  }

  // Registers are short: it is read where it is needed.
  static __device__ __forceinline__ Place& place() { return shared_memory<Place>(); }
  static __device__ __forceinline__ T* begin() { return reinterpret_cast<T*>(&place() + 1); }

  static __device__ __forceinline__ SharedRows<T, kSize> queries(int step) {
    return {begin() + step % 2 * kStepValues};
  }
  static __device__ __forceinline__ SharedRows<T, kSize> grads(int step) {
    return {queries(step).data + kQueries * kSize};
  }
  static __device__ __forceinline__ SharedRows<T, kSize> keys(int warp) {
    return {begin() + 2 * kStepValues + warp * kWarpValues};
  }
  static __device__ __forceinline__ SharedRows<T, kSize> values(int warp) {
    return {keys(warp).data + kWarpKeys * kSize};
  }
  // The gradients of scores, a row a key.
  static __device__ __forceinline__ SharedRows<T, kQueries> grad_scores(int warp) {
    return {keys(warp).data + 2 * kWarpKeys * kSize};
  }
  // A piece of grad_q on its way out.
  static __device__ __forceinline__ SharedRows<T, kPieceColumns> piece(int warp) { return {keys(warp).data + kOfKeys}; }
  // A warp's part of the gate's gradient.
  static __device__ __forceinline__ float* of_gate(int warp) {
    return reinterpret_cast<float*>(piece(warp).data + kOfPiece);
  }
  // Of the queries to base 2; their deltas are behind them.
  static __device__ __forceinline__ float* logsumexps() { return reinterpret_cast<float*>(keys(blockDim.x / 32).data); }
};

// The statistics of the sequence's queries; those that fill up the last step get weights of 0.
template <typename T, int kSize>
__device__ __forceinline__ void gather_statistics(const AttentionBackward& a, const Place& at, float* logsumexps) {
  constexpr int kLanes = kSize / 8;  // that share a row
  const AttentionProblem& p = a.problem;
  const Heads outs{const_cast<void*>(a.out), p.heads * kSize, kSize};
  const int number = threadIdx.x % kLanes, rows = up_to_queries(at.count_q);
#pragma unroll 4
  for (int row = threadIdx.x / kLanes; row < rows; row += blockDim.x / kLanes) {
    float delta = 0.0f, logsumexp = INFINITY;
    if (row < at.count_q) {
      const uint4 y = *reinterpret_cast<const uint4*>(at.of_queries<T>(outs, row) + number * 8);
      const uint4 grad = *reinterpret_cast<const uint4*>(at.of_queries<T>(a.grad_out, row) + number * 8);
      const uint32_t ys[4] = {y.x, y.y, y.z, y.w}, gs[4] = {grad.x, grad.y, grad.z, grad.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 u = unpack<T>(ys[i]), v = unpack<T>(gs[i]);
        delta += u.x * v.x + u.y * v.y;
      }
      logsumexp = a.logsumexp[at.head * p.tokens_q + at.first_q + row] * kLog2E;
    }
#pragma unroll
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      delta += __shfl_xor_sync(0xFFFFFFFFu, delta, distance);
    }
    if (number == 0) {
      logsumexps[row] = logsumexp;
      logsumexps[rows + row] = delta;
    }
  }
}

// d (the warp's keys x kCount) = its rows, `left`, times rows first ... first + kCount of `right`, transposed.
template <int kCount, typename T, int kSize>
__device__ __forceinline__ void times_queries(float (&d)[kWarpTiles][kCount / 8][4], const SharedRows<T, kSize>& left,
                                              const SharedRows<T, kSize>& right, int first, unsigned lane) {
#pragma unroll
  for (int i = 0; i < kWarpTiles * kCount / 2; ++i) d[i / (kCount / 2)][i / 4 % (kCount / 8)][i % 4] = 0.0f;
#pragma unroll
  for (int k = 0; k < kSize; k += 16) {
    uint32_t of_keys[kWarpTiles][4];
#pragma unroll
    for (int m = 0; m < kWarpTiles; ++m) load_matrices(of_keys[m], left.as_a(m * kTileRows, k, lane));
#pragma unroll
    for (int n = 0; n < kCount / 16; ++n) {
      uint32_t b[4];
      load_matrices(b, right.as_b(first + n * 16, k, lane));
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m) {
        mma<T>(d[m][2 * n], of_keys[m], b[0], b[1]);
        mma<T>(d[m][2 * n + 1], of_keys[m], b[2], b[3]);
      }
    }
  }
}

// d (the warp's keys x kSize) += weights (by kQueries) times `rows`.
template <typename T, int kSize>
__device__ __forceinline__ void add_queries(float (&d)[kWarpTiles][kSize / 8][4],
                                            const Pairs<kQueries> (&weights)[kWarpTiles],
                                            const SharedRows<T, kSize>& rows, unsigned lane) {
#pragma unroll
  for (int k = 0; k < kQueries / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kSize / 16; ++n) {
      uint32_t b[4];
      load_transposed(b, rows.as_a(k * 16, n * 16, lane));
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m) {
        mma<T>(d[m][2 * n], weights[m].a[k], b[0], b[1]);
        mma<T>(d[m][2 * n + 1], weights[m].a[k], b[2], b[3]);
      }
    }
  }
}

// The lane's part of the sum of d * rows over the warp's first `count` keys.
template <typename T, int kSize>
__device__ __forceinline__ float rows_dot(const float (&d)[kWarpTiles][kSize / 8][4], const SharedRows<T, kSize>& rows,
                                          int count) {
  const unsigned lane = computed_here(lane_id()) % 32;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < 2 * kWarpTiles; ++i) {
    const int key = lane / 4 + 8 * i;
    if (key >= count) continue;  // d is no number to count on
#pragma unroll
    for (int n = 0; n < kSize / 8; ++n) {
      const float2 v = unpack<T>(reinterpret_cast<const uint32_t*>(rows.chunk(lane / 4, n) + 8 * i * kSize)[lane % 4]);
      sum += d[i / 2][n][i % 2 * 2] * v.x + d[i / 2][n][i % 2 * 2 + 1] * v.y;
    }
  }
  return sum;
}

// With P = softmax(scores), F what dropout does, c the gate, G the output's gradient:
//   grad_scores = P (c F (G v^T) - delta), delta = c rowsum(P F (G v^T)) = rowsum(G * out).
using Weights = float[kWarpTiles][kQueries / 8][4];

// From scores the weights P, whose sign says whether dropout keeps them, and in `kept` those that it does.
template <typename T>
__device__ __forceinline__ void weigh(Weights& weights, Pairs<kQueries> (&kept)[kWarpTiles],
                                      const KeysDraws<kQueries>& draws, const float* logsumexps, const Constants& c,
                                      unsigned lane) {
#pragma unroll
  for (int n = 0; n < kQueries / 8; ++n) {
    const float2 logsumexp = *reinterpret_cast<const float2*>(logsumexps + n * 8 + lane % 4 * 2);
#pragma unroll
    for (int m = 0; m < kWarpTiles; ++m) {
      float (&w)[4] = weights[m][n];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        w[i] = exp2_fast(w[i] * c.base_2_scale - (i % 2 == 0 ? logsumexp.x : logsumexp.y));
        w[i] = draws.kept(n, m, i % 2, i / 2, c.threshold) ? w[i] : -w[i];
      }
      kept[m].of(n, 0) = pack_positive<T>(w[0], w[1]);
      kept[m].of(n, 1) = pack_positive<T>(w[2], w[3]);
    }
  }
}

// The gradients of scores, in registers and in shared memory.
template <typename T, int kSize>
__device__ __forceinline__ void score_gradients(Pairs<kQueries> (&pairs)[kWarpTiles], const Weights& weights,
                                                const SharedRows<T, kSize>& values, const SharedRows<T, kSize>& grads,
                                                const SharedRows<T, kQueries>& shared, const float* deltas,
                                                float factor, int count, unsigned lane) {
  // Half of the queries at a time, for want of registers.
#pragma unroll
  for (int part = 0; part < kQueries; part += kQueries / 2) {
    float grad_weights[kWarpTiles][kQueries / 16][4];
    times_queries<kQueries / 2>(grad_weights, values, grads, part, lane);
#pragma unroll
    for (int n = part / 8; n < (part + kQueries / 2) / 8; ++n) {
      const float2 delta = *reinterpret_cast<const float2*>(deltas + n * 8 + lane % 4 * 2);
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m) {
        const float (&w)[4] = weights[m][n];
        float (&grad)[4] = grad_weights[m][n - part / 8];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          grad[i] = fabsf(w[i]) * ((w[i] > 0.0f ? grad[i] : 0.0f) * factor - (i % 2 == 0 ? delta.x : delta.y));
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t pair = pack<T>(grad[2 * half], grad[2 * half + 1]);
          pairs[m].of(n, half) = pair;
          // Rows behind the sequence's end are no numbers to count on.
          const int before = m * kTileRows + 8 * half;
          reinterpret_cast<uint32_t*>(shared.chunk(lane / 4, n) + before * kQueries)[lane % 4] =
              before + static_cast<int>(lane / 4) < count ? pair : 0;
        }
      }
    }
  }
}

using Piece = float[kPieceColumns / 8][4];

// d += the scores' gradients of the tile's `count` keys, for 16 queries of the step, times columns of the keys.
template <typename T, int kSize>
__device__ __forceinline__ void times_keys(Piece& d, int query, int column, int count) {
  using Memory = BackwardMemory<T, kSize>;
  const unsigned lane = computed_here(lane_id()) % 32;
#pragma unroll 2
  for (int key = 0; key < count; key += 16) {
    uint32_t left[4];
    load_transposed(left, Memory::grad_scores(key / kWarpKeys).as_b(key % kWarpKeys, query, lane));
#pragma unroll
    for (int n = 0; n < kPieceColumns / 16; ++n) {
      uint32_t b[4];
      load_transposed(b, Memory::keys(key / kWarpKeys).as_a(key % kWarpKeys, column + n * 16, lane));
      mma<T>(d[2 * n], left, b[0], b[1]);
      mma<T>(d[2 * n + 1], left, b[2], b[3]);
    }
  }
}

// Where a lane's part of a piece is in the workspace, as four float4 32 apart. Sequences begin at a step of their own.
template <int kSize>
__device__ __forceinline__ float4* kept_piece(const AttentionBackward& a, const Place& at, int part, int step,
                                              int piece) {
  const AttentionProblem& p = a.problem;
  const int64_t steps = p.tokens_q / kQueries + p.sequences, first = at.first_q / kQueries + at.sequence;
  const int64_t number = (part * p.heads + at.head) * steps + first + step;
  return reinterpret_cast<float4*>(a.workspace + number * kQueries * kSize) + piece * kTileRows * kPieceColumns / 4 +
         lane_id();
}

__device__ __forceinline__ void add_piece(Piece& d, const float4* kept) {
#pragma unroll
  for (int n = 0; n < kPieceColumns / 8; ++n) {
    const float4 v = kept[n * 32];
    d[n][0] += v.x, d[n][1] += v.y, d[n][2] += v.z, d[n][3] += v.w;
  }
}

// Writes a piece of grad_q through shared memory of the warp's own.
template <typename T>
__device__ __forceinline__ void store_piece(const Piece& d, const AttentionBackward& a, const Place& at, float scale,
                                            const SharedRows<T, kPieceColumns>& mine, int query, int column) {
  store_rows(d, scale, scale, mine, at.of_queries<T>(a.grad_q, query) + column, a.grad_q.token, at.count_q - query);
}

template <typename T, int kSize>
__global__ void __launch_bounds__(kBackwardThreads, 2) backward_kernel(const AttentionBackward a, const Constants c) {
  using Memory = BackwardMemory<T, kSize>;
  const AttentionProblem& p = a.problem;
  const int tile_keys = blockDim.x;
  float factor;  // of weights: the gate, and what dropout multiplies by
  int first;  // key of a tile
  {
    const Place at(p, blockIdx.x, c.tiles);
    if (at.tile * tile_keys >= at.count_k || at.count_q == 0 || at.pruned(p)) {
      if (a.grad_gates != nullptr && threadIdx.x == 0) store_result(a.grad_gates + blockIdx.x, 0.0f);
      if (at.tile == 0 && (p.zero_pruned || !at.pruned(p))) {
        zero_rows<T, kSize>(at.of_queries<T>(a.grad_q, 0), a.grad_q.token, 0, at.count_q);
        zero_rows<T, kSize>(at.of_keys<T>(a.grad_k, 0), a.grad_k.token, 0, at.count_k);
        zero_rows<T, kSize>(at.of_keys<T>(a.grad_v, 0), a.grad_v.token, 0, at.count_k);
      }
      return;
    }
    if (threadIdx.x == 0) Memory::place() = at;
    factor = at.gate(p) * c.kept_scale;
    first = at.tile * tile_keys;
  }
  __syncthreads();

  const int warp = same_in_warp(warp_id()), row = warp * kWarpKeys;
  const auto load_step = [&](int step) {
    const Place at = Memory::place();
    const int query = step * kQueries, count = min(kQueries, at.count_q - query);
    const Loaders block{static_cast<int>(computed_here(threadIdx.x)), static_cast<int>(blockDim.x)};
    Memory::queries(step).load(at.of_queries<T>(p.q, query), p.q.token, count, kQueries, block);
    Memory::grads(step).load(at.of_queries<T>(a.grad_out, query), a.grad_out.token, count, kQueries, block);
  };
  uint64_t seed = p.seed == nullptr ? 0 : static_cast<uint64_t>(*p.seed);
  seed = static_cast<uint64_t>(same_in_warp(seed >> 32)) << 32 | same_in_warp(static_cast<uint32_t>(seed));
  // Without computed_here the compiler counts tiles as well, in another register.
  for (; first < Memory::place().count_k; first = computed_here(first + c.tiles * tile_keys)) {
    const bool begins = first < c.tiles * tile_keys;
    const int count = min(tile_keys, Memory::place().count_k - first);
    if (row < count) {
      const Place at = Memory::place();
      const Loaders lanes{static_cast<int>(computed_here(lane_id())), 32};
      Memory::keys(warp).load(at.of_keys<T>(p.k, first + row), p.k.token, count - row, kWarpKeys, lanes);
      Memory::values(warp).load(at.of_keys<T>(p.v, first + row), p.v.token, count - row, kWarpKeys, lanes);
    }
    load_step(0);
    commit_copies();
    if (begins) gather_statistics<T, kSize>(a, Memory::place(), Memory::logsumexps());

    float sums_k[kWarpTiles][kSize / 8][4] = {}, sums_v[kWarpTiles][kSize / 8][4] = {};
    for (int step = 0; step * kQueries < Memory::place().count_q; ++step) {
      if ((step + 1) * kQueries < Memory::place().count_q) load_step(step + 1);
      commit_copies();
      wait_for_all_but_last_copies();
      __syncthreads();
      const SharedRows<T, kSize> queries = Memory::queries(step);
      const SharedRows<T, kSize> grads = Memory::grads(step);
      const float* logsumexps = Memory::logsumexps() + step * kQueries;
      const float* deltas = logsumexps + up_to_queries(Memory::place().count_q);
      if (row < count) {
        const unsigned lane = computed_here(lane_id()) % 32;
        KeysDraws<kQueries> draws{};
        if (p.seed != nullptr) {
          draws = draws_by_key<kQueries>(seed, Memory::place().row(p, step * kQueries), first + row, lane);
        }
        Weights weights;
        Pairs<kQueries> pairs[kWarpTiles];
        times_queries<kQueries>(weights, Memory::keys(warp), queries, 0, lane);
        weigh<T>(weights, pairs, draws, logsumexps, c, lane);
        add_queries(sums_v, pairs, grads, lane);
        score_gradients<T, kSize>(pairs, weights, Memory::values(warp), grads, Memory::grad_scores(warp), deltas,
                                  factor, count - row, lane);
        add_queries(sums_k, pairs, queries, lane);
      }
      __syncthreads();
      // The step's grad_q, of all the tile's keys: in order, so that repeated runs give the same bits.
      for (int piece = warp; piece < 2 * kSize / kPieceColumns; piece += tile_keys / kWarpKeys) {
        const Place at = Memory::place();
        const int in_step = piece % 2 * kTileRows, query = step * kQueries + in_step;
        const int column = piece / 2 * kPieceColumns;
        if (query >= at.count_q) continue;
        Piece sums = {};
        times_keys<T, kSize>(sums, in_step, column, count);
        float4* kept = kept_piece<kSize>(a, at, at.tile, step, piece);
        if (!begins) add_piece(sums, kept);
        if (at.count_k <= tile_keys || (c.tiles == 1 && first + tile_keys >= at.count_k)) {
          store_piece<T>(sums, a, at, c.scale, Memory::piece(warp), query, column);
          continue;
        }
#pragma unroll
        for (int n = 0; n < kPieceColumns / 8; ++n) {
          kept[n * 32] = make_float4(sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
        }
      }
    }
    wait_for_copies();

    if (row < count) {
      if (a.grad_gates != nullptr) {
        const float sum = warp_sum(rows_dot(sums_v, Memory::values(warp), count - row));
        if (lane_id() == 0) *Memory::of_gate(warp) = (begins ? 0.0f : *Memory::of_gate(warp)) + sum;
      }
      const Place at = Memory::place();
#pragma unroll
      for (int m = 0; m < kWarpTiles; ++m) {
        const int tile = row + m * kTileRows;
        if (tile >= count) continue;
        // Through the place of its values, which no other warp reads.
        const SharedRows<T, kSize> mine{Memory::values(warp).data + m * kTileRows * kSize};
        store_rows(sums_k[m], c.scale, c.scale, mine, at.of_keys<T>(a.grad_k, first + tile), a.grad_k.token,
                   count - tile);
        store_rows(sums_v[m], factor, factor, mine, at.of_keys<T>(a.grad_v, first + tile), a.grad_v.token,
                   count - tile);
      }
    }
    __syncthreads();  // before the next tile takes their place
  }
  if (a.grad_gates != nullptr && threadIdx.x == 0) {
    const Place at = Memory::place();
    float sum = 0.0f;
    for (int other = 0; other < tile_keys / 32 && at.tile * tile_keys + other * kWarpKeys < at.count_k; ++other) {
      sum += *Memory::of_gate(other);
    }
    store_result(a.grad_gates + blockIdx.x, sum * c.kept_scale);
  }
}

// Where blocks, of `tile_keys` keys each, share a sequence: grad_q of a step, from the parts that they left in the
// workspace. A warp has a piece.
template <typename T, int kSize>
__global__ void __launch_bounds__(kBackwardThreads)
    sum_parts_kernel(const AttentionBackward a, const Constants c, int steps, int tile_keys) {
  const AttentionProblem& p = a.problem;
  const Place at(p, blockIdx.x, steps);
  const int piece = warp_id(), query = at.tile * kQueries + piece % 2 * kTileRows;
  if (query >= at.count_q || at.count_k <= tile_keys || at.pruned(p)) return;
  Piece sums = {};
  for (int part = 0; part < c.tiles && part * tile_keys < at.count_k; ++part) {
    add_piece(sums, kept_piece<kSize>(a, at, part, at.tile, piece));
  }
  T* memory = reinterpret_cast<T*>(&shared_memory<uint4>());
  store_piece<T>(sums, a, at, c.scale, {memory + piece * kTileRows * kPieceColumns}, query, piece / 2 * kPieceColumns);
}

}  // namespace
}  // namespace earlybert
