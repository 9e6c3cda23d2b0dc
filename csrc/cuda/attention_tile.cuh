// What a warp of attention does: 16 rows of its own, in registers, against rows of others, in shared memory.
//
// Both are rows of one head of one sequence: queries, keys, values or gradients. The arithmetic of a tile is two
// products, `times_transposed` and `add_times`, of which forward and backward are made.
#pragma once

#include "../common/counter_rng.h"
#include "tensor_core.cuh"

namespace earlybert {

constexpr int kTileRows = 16;  // of a warp

__device__ __forceinline__ int lane_id() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp_id() { return threadIdx.x / 32; }

EARLYBERT_HOST_DEVICE constexpr int up_to_tiles(int rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

// Rows of kSize values in shared memory. The 16-byte chunks of a row change places with the row's number, so that eight
// rows' chunks of one column, which a matrix of `load_matrices` is, lie in different banks.
template <typename T, int kSize>
struct SharedRows {
  static constexpr int kChunks = kSize / 8;
  T* data;

  __device__ __forceinline__ T* chunk(int row, int number) const {
    const int turn = kSize == 64 ? row & 7 : (row >> 1) & 3;
    return data + row * kSize + ((number ^ turn) * 8);
  }

  // The block's threads begin to copy rows 0 ... count - 1 of a head, and zeros up to a multiple of 16 rows.
  __device__ __forceinline__ void load(const T* head, int64_t stride, int count) const {
    const int chunks = up_to_tiles(count) * kChunks;
    for (int i = threadIdx.x; i < chunks; i += blockDim.x) {
      const int row = i / kChunks, number = i % kChunks;
      const bool there = row < count;
      copy_async_16(chunk(row, number), head + (there ? row * stride : 0) + number * 8, there);
    }
  }

  // Row `first + lane % 16`'s chunk: what a lane gives to load 16 rows and 16 columns, as A or transposed as B ...
  __device__ __forceinline__ const T* as_a(int first, int columns) const {
    return chunk(first + lane_id() % 16, columns / 8 + lane_id() / 16);
  }
  // ... and as B: rows 0-7, columns 0-7 and 8-15, then rows 8-15.
  __device__ __forceinline__ const T* as_b(int first, int columns) const {
    return chunk(first + lane_id() % 8 + lane_id() / 16 * 8, columns / 8 + lane_id() / 8 % 2);
  }
};

// 16 rows as the left factor of products.
template <typename T, int kSize>
struct Left {
  uint32_t a[kSize / 16][4];

  __device__ __forceinline__ void load(const SharedRows<T, kSize>& rows, int first) {
#pragma unroll
    for (int k = 0; k < kSize / 16; ++k) load_matrices(a[k], rows.as_a(first, k * 16));
  }
};

// d (16 x kOthers) = left rows[first ... first + kOthers)^T, of a dot product over a row's values.
template <int kOthers, typename T, int kSize>
__device__ __forceinline__ void times_transposed(float (&d)[kOthers / 8][4], const Left<T, kSize>& left,
                                                 const SharedRows<T, kSize>& rows, int first) {
#pragma unroll
  for (int n = 0; n < kOthers / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) d[n][i] = 0.0f;
  }
#pragma unroll
  for (int k = 0; k < kSize / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kOthers / 16; ++n) {
      uint32_t b[4];
      load_matrices(b, rows.as_b(first + n * 16, k * 16));
      mma<T>(d[2 * n], left.a[k], b[0], b[1]);
      mma<T>(d[2 * n + 1], left.a[k], b[2], b[3]);
    }
  }
}

// d (16 x kSize) += weights (16 x kOthers), rounded, times rows[first ... first + kOthers).
template <int kOthers, typename T, int kSize>
__device__ __forceinline__ void add_times(float (&d)[kSize / 8][4], const float (&weights)[kOthers / 8][4],
                                          const SharedRows<T, kSize>& rows, int first) {
#pragma unroll
  for (int k = 0; k < kOthers / 16; ++k) {
    const uint32_t a[4] = {pack<T>(weights[2 * k][0], weights[2 * k][1]), pack<T>(weights[2 * k][2], weights[2 * k][3]),
                           pack<T>(weights[2 * k + 1][0], weights[2 * k + 1][1]),
                           pack<T>(weights[2 * k + 1][2], weights[2 * k + 1][3])};
#pragma unroll
    for (int n = 0; n < kSize / 16; ++n) {
      uint32_t b[4];
      load_transposed(b, rows.as_a(first + k * 16, n * 16));
      mma<T>(d[2 * n], a, b[0], b[1]);
      mma<T>(d[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// Writes the warp's 16 rows d * (factor of its row g, g + 8) through shared memory of its own, in 16-byte chunks; rows
// from `count` on are left out.
template <typename T, int kSize>
__device__ __forceinline__ void store_rows(const float (&d)[kSize / 8][4], float factor, float factor_8,
                                           const SharedRows<T, kSize>& own, T* out, int64_t stride, int count) {
  const int g = lane_id() / 4, c = lane_id() % 4;
  __syncwarp();  // the warp is done with what is there
#pragma unroll
  for (int n = 0; n < kSize / 8; ++n) {
    reinterpret_cast<uint32_t*>(own.chunk(g, n))[c] = pack<T>(d[n][0] * factor, d[n][1] * factor);
    reinterpret_cast<uint32_t*>(own.chunk(g + 8, n))[c] = pack<T>(d[n][2] * factor_8, d[n][3] * factor_8);
  }
  __syncwarp();
  constexpr int kChunks = SharedRows<T, kSize>::kChunks;
#pragma unroll
  for (int i = lane_id(); i < kTileRows * kChunks; i += 32) {
    const int row = i / kChunks, number = i % kChunks;
    if (row < count) {
      store_result(reinterpret_cast<uint4*>(out + row * stride + number * 8),
                   *reinterpret_cast<const uint4*>(own.chunk(row, number)));
    }
  }
}

// The block's threads write zeros to rows first ... last - 1.
template <typename T, int kSize>
__device__ __forceinline__ void zero_rows(T* head, int64_t stride, int first, int last) {
  constexpr int kChunks = kSize / 8;
  for (int i = first * kChunks + threadIdx.x; i < last * kChunks; i += blockDim.x) {
    store_result(reinterpret_cast<uint4*>(head + i / kChunks * stride + i % kChunks * 8), make_uint4(0, 0, 0, 0));
  }
}

// Which weights of a tile dropout keeps: bit 4n of w[i] is that of d[n][i]. Every lane draws the random numbers of whole
// groups of four weights, one of each n, and lanes exchange the bits that others need.
struct Kept {
  uint32_t w[4];

  __device__ __forceinline__ bool operator()(int n, int i) const { return (w[i] >> (4 * n)) & 1u; }
};

// Bit i: whether the weight of number 4 * group + i is kept.
__device__ __forceinline__ uint32_t kept_of_group(uint64_t seed, uint64_t group, uint32_t threshold) {
  const Words w = random_words(seed, group);
  return (w.w0 >= threshold ? 1u : 0u) | (w.w1 >= threshold ? 2u : 0u) | (w.w2 >= threshold ? 4u : 0u) |
         (w.w3 >= threshold ? 8u : 0u);
}

// Of a tile of 16 queries x kOthers keys. `first`: the group of the first query's first key; `step`: groups of a query.
template <int kOthers>
__device__ __forceinline__ Kept kept_by_query(uint64_t seed, uint32_t threshold, uint64_t first, int64_t step) {
  const int lane = lane_id();
  // Two neighbours need the same groups of two queries: each draws those of one.
  const uint64_t own = first + (lane / 4 + 8 * (lane & 1)) * step + (lane >> 1 & 1);
  uint32_t bits = 0;
#pragma unroll
  for (int n = 0; n < kOthers / 8; ++n) bits |= kept_of_group(seed, own + 2 * n, threshold) << (4 * n);
  const uint32_t others = __shfl_xor_sync(0xFFFFFFFFu, bits, 1);
  const bool odd = lane & 1;
  const uint32_t g = (odd ? others : bits) >> (odd ? 2 : 0), g_8 = (odd ? bits : others) >> (odd ? 2 : 0);
  return {{g, g >> 1, g_8, g_8 >> 1}};
}

// Of a tile of 16 keys x kOthers queries. `first`: the group of the first key's weight for the first query.
template <int kOthers>
__device__ __forceinline__ Kept kept_by_key(uint64_t seed, uint32_t threshold, uint64_t first, int64_t step) {
  const int lane = lane_id(), turn = lane / 4 % 4;
  // The four lanes of four neighbouring keys need the same four groups for d[n][0 ... 3]: each draws one.
  const uint64_t own = first + (2 * (lane % 4) + (turn & 1)) * step + lane / 16 + 2 * (turn >> 1);
  uint32_t bits = 0;
#pragma unroll
  for (int n = 0; n < kOthers / 8; ++n) bits |= kept_of_group(seed, own + 8 * n * step, threshold) << (4 * n);
  const uint32_t by_1 = __shfl_xor_sync(0xFFFFFFFFu, bits, 4), by_2 = __shfl_xor_sync(0xFFFFFFFFu, bits, 8),
                 by_3 = __shfl_xor_sync(0xFFFFFFFFu, bits, 12);
  const bool odd = turn & 1, upper = turn & 2;
  const uint32_t a = odd ? by_1 : bits, b = odd ? bits : by_1, c = odd ? by_3 : by_2, d = odd ? by_2 : by_3;
  return {{(upper ? c : a) >> turn, (upper ? d : b) >> turn, (upper ? a : c) >> turn, (upper ? b : d) >> turn}};
}

// The sum over the four lanes that share a row.
__device__ __forceinline__ float quad_sum(float v) {
  v += __shfl_xor_sync(0xFFFFFFFFu, v, 1);
  return v + __shfl_xor_sync(0xFFFFFFFFu, v, 2);
}

__device__ __forceinline__ float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xFFFFFFFFu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xFFFFFFFFu, v, 2));
}

}  // namespace earlybert
