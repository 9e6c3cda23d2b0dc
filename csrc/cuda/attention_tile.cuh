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

// What is the same in all lanes of a warp, so that the compiler knows: it goes to the registers that they share.
__device__ __forceinline__ uint32_t same_in_warp(uint32_t x) { return __shfl_sync(0xFFFFFFFFu, x, 0); }

EARLYBERT_HOST_DEVICE constexpr int up_to_tiles(int rows) { return (rows + kTileRows - 1) / kTileRows * kTileRows; }

// The threads that copy something together, and which of them this one is.
struct Loaders {
  int own, count;
};

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

  // The block's threads begin to copy rows 0 ... count - 1 of a head, and zeros up to `rows`, or to a multiple of 16.
  __device__ __forceinline__ void load(const T* head, int64_t stride, int count) const {
    load(head, stride, count, up_to_tiles(count), {static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)});
  }
  __device__ __forceinline__ void load(const T* head, int64_t stride, int count, int rows, Loaders threads) const {
    const int number = threads.own % kChunks, step = threads.count / kChunks;
    int row = threads.own / kChunks;
    const T* from = head + row * stride + number * 8;
    for (; row < rows; row += step, from += step * stride) {
      copy_async_16(chunk(row, number), row < count ? from : head, row < count);
    }
  }

  // Row `first + lane % 16`'s chunk: what a lane gives to load 16 rows and 16 columns, as A or transposed as B ...
  // `first` is a multiple of 16, which leaves a chunk in its place.
  __device__ __forceinline__ const T* as_a(int first, int columns, unsigned lane = lane_id()) const {
    return chunk(lane % 16, columns / 8 + lane / 16) + first * kSize;
  }
  // ... and as B: rows 0-7, columns 0-7 and 8-15, then rows 8-15.
  __device__ __forceinline__ const T* as_b(int first, int columns, unsigned lane = lane_id()) const {
    return chunk(lane % 8 + lane / 16 * 8, columns / 8 + lane / 8 % 2) + first * kSize;
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

// 16 x kOthers weights, rounded, as the left factor of a product; or two random draws in the place of each two.
template <int kOthers>
struct Pairs {
  uint32_t a[kOthers / 16][4];

  // That of d[n][2 * half] and d[n][2 * half + 1], of row g + 8 * half.
  __device__ __forceinline__ uint32_t& of(int n, int half) { return a[n / 2][n % 2 * 2 + half]; }
};

template <typename T, int kOthers>
__device__ __forceinline__ Pairs<kOthers> rounded(const float (&weights)[kOthers / 8][4]) {
  Pairs<kOthers> pairs;
#pragma unroll
  for (int n = 0; n < kOthers / 8; ++n) {
    pairs.of(n, 0) = pack<T>(weights[n][0], weights[n][1]);
    pairs.of(n, 1) = pack<T>(weights[n][2], weights[n][3]);
  }
  return pairs;
}

// d (16 x kSize) += weights (16 x kOthers) times rows[first ... first + kOthers).
template <int kOthers, typename T, int kSize>
__device__ __forceinline__ void add_times(float (&d)[kSize / 8][4], const Pairs<kOthers>& weights,
                                          const SharedRows<T, kSize>& rows, int first) {
#pragma unroll
  for (int k = 0; k < kOthers / 16; ++k) {
#pragma unroll
    for (int n = 0; n < kSize / 16; ++n) {
      uint32_t b[4];
      load_transposed(b, rows.as_a(first + k * 16, n * 16));
      mma<T>(d[2 * n], weights.a[k], b[0], b[1]);
      mma<T>(d[2 * n + 1], weights.a[k], b[2], b[3]);
    }
  }
}

// Writes the warp's 16 rows d * (factor of its row g, g + 8) through shared memory of its own, in 16-byte chunks; rows
// from `count` on are left out.
template <typename T, int kSize>
__device__ __forceinline__ void store_rows(const float (&d)[kSize / 8][4], float factor, float factor_8,
                                           const SharedRows<T, kSize>& own, T* out, int64_t stride, int count) {
  const unsigned lane = computed_here(lane_id()) % 32, g = lane / 4, c = lane % 4;
  __syncwarp();  // the warp is done with what is there
#pragma unroll
  for (int n = 0; n < kSize / 8; ++n) {
    reinterpret_cast<uint32_t*>(own.chunk(g, n))[c] = pack<T>(d[n][0] * factor, d[n][1] * factor);
    reinterpret_cast<uint32_t*>(own.chunk(g + 8, n))[c] = pack<T>(d[n][2] * factor_8, d[n][3] * factor_8);
  }
  __syncwarp();
  constexpr int kChunks = SharedRows<T, kSize>::kChunks;
#pragma unroll
  for (int i = lane; i < kTileRows * kChunks; i += 32) {
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

// The draws of a tile of 16 queries x kOthers keys, where `rounded` has the weights. `row`: of the weights
// of the lane's query g; `first`: the first key, a multiple of kOthers. A block has the draws of just the
// columns that a lane has.
template <int kOthers>
__device__ __forceinline__ Pairs<kOthers> draws_by_query(uint64_t seed, uint64_t row, int first) {
  constexpr int kWords = kOthers < kDropoutGroup ? kOthers / 8 : 4;  // of a block: 16 keys are half a group
  const bool upper = first % kDropoutGroup != 0;
  Pairs<kOthers> draws;
#pragma unroll
  for (int n = 0; n < kOthers / 8; n += kWords) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Words block = random_words(seed, row + 8 * half, (first / kDropoutGroup + n / 4) * 4 + lane_id() % 4);
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        draws.of(n + i, half) = kWords < 4 && upper ? block.w[i + 4 - kWords] : block.w[i];
      }
    }
  }
  return draws;
}

// Makes 0 of the weights that dropout drops.
template <int kOthers>
__device__ __forceinline__ void drop(Pairs<kOthers>& weights, const Pairs<kOthers>& draws, uint32_t threshold) {
  const uint32_t least = threshold * 0x00010001u;
  if (threshold <= kHalfInfinity) {
#pragma unroll
    for (int i = 0; i < kOthers / 4; ++i) weights.a[i / 4][i % 4] &= halves_at_least(draws.a[i / 4][i % 4], least);
  } else {
#pragma unroll
    for (int i = 0; i < kOthers / 4; ++i) {
      // The highest bit of a half says that the rest of it is not below the threshold: 1 or 0 times all bits.
      weights.a[i / 4][i % 4] &= ((((draws.a[i / 4][i % 4] | 0x80008000u) - least) >> 15) & 0x00010001u) * 0xFFFFu;
    }
  }
}

// The draws of 32 keys x kOthers queries, of which a lane has keys g, g + 8, g + 16, g + 24.
template <int kOthers>
struct KeysDraws {
  uint32_t pairs[kOthers / 8][2][2];  // [n][m][i]: of keys g + 16 m (low) and g + 16 m + 8, query 8 n + 2 c + i

  __device__ __forceinline__ bool kept(int n, int m, int i, int half, uint32_t threshold) const {
    // In place: a half is worth no shift.
    return (pairs[n][m][i] & (kDraws - 1) << (16 * half)) >= threshold << (16 * half);
  }
};

// `row`: of the first query's weights; `first`: the first key, a multiple of 32.
template <int kOthers>
__device__ __forceinline__ KeysDraws<kOthers> draws_by_key(uint64_t seed, uint64_t row, int first, unsigned lane) {
  KeysDraws<kOthers> draws;
  const unsigned g = lane / 4, odd = g % 2;
  const uint32_t mine = odd ? 0x7632 : 0x5410, others = mine ^ 0x2222;
#pragma unroll
  for (int n = 0; n < kOthers / 8; ++n) {
    // The lanes of keys 2c and 2c + 1 need the same blocks of two queries, each half of them: each draws that of one.
    const Words block = random_words(seed, row + n * 8 + lane % 4 * 2 + odd, first / kDropoutGroup * 4 + g / 2);
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const uint32_t of_g = block.w[2 * m], of_g_8 = block.w[2 * m + 1];
      const uint32_t own = __byte_perm(of_g, of_g_8, mine);
      const uint32_t got = __shfl_xor_sync(0xFFFFFFFFu, __byte_perm(of_g, of_g_8, others), 4);
      draws.pairs[n][m][0] = odd ? got : own;
      draws.pairs[n][m][1] = odd ? own : got;
    }
  }
  return draws;
}

// The sum over the four lanes that share a row.
__device__ __forceinline__ float quad_sum(float v) {
  v += __shfl_xor_sync(0xFFFFFFFFu, v, 1);
  return v + __shfl_xor_sync(0xFFFFFFFFu, v, 2);
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, distance);
  return v;
}

__device__ __forceinline__ float quad_max(float v) {
  v = fmaxf(v, __shfl_xor_sync(0xFFFFFFFFu, v, 1));
  return fmaxf(v, __shfl_xor_sync(0xFFFFFFFFu, v, 2));
}

}  // namespace earlybert
