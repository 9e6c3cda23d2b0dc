// Layer norm of rows that a group of threads holds in registers, its gradient, and the sums over rows that a backward
// kernel collects on the way.
#pragma once

#include <cstdint>

#include "launch.cuh"
#include "layer_norm.h"
#include "rows.cuh"

namespace earlybert {

// A row is shared by kThreads threads, each with kItems vectors in registers: a warp up to 1024 columns, which covers
// BERT and needs no barrier, and a whole block beyond.
//
// A backward kernel runs on at most kBackwardBlocks blocks, each of which writes one row of partial sums for every
// vector of sums. That number is fixed rather than read from the device, so that results do not depend on the device's
// size: it is what an H100, of 132 multiprocessors, holds at once when each has kResident blocks. The registers that a
// thread may have follow from that; it needs two for each of its columns, and some 50.
template <int kThreadsPerRow, int kItemsPerThread, int kThreadsPerBlock, int kBlocksPerMultiprocessor>
struct Layout {
  static constexpr int kThreads = kThreadsPerRow, kItems = kItemsPerThread;
  static constexpr int kBlock = kThreadsPerBlock, kResident = kBlocksPerMultiprocessor;
  static constexpr int kRows = kBlock / kThreads;  // rows in flight in a block
  static constexpr int kCols = kThreads * kItems * kVector;
  static constexpr int kBackwardBlocks = 132 * kResident;
  static constexpr int kForwardResident = 768 / kBlock;  // 80 registers a thread, of which none has to be spilled
};

constexpr int kMostThreads = 256;

// Calls `body` with the layout for a row's width, as `body(Layout{})`.
template <typename Body>
void with_layout(int64_t cols, Body body) {
  if (cols <= 512) {
    body(Layout<32, 4, 128, 4>{});
  } else if (cols <= 768) {
    body(Layout<32, 6, 128, 4>{});
  } else if (cols <= 1024) {
    body(Layout<32, 8, 128, 3>{});
  } else if (cols <= 4096) {
    body(Layout<128, 8, 128, 3>{});
  } else {
    using Widest = Layout<kMostThreads, 8, kMostThreads, 1>;
    static_assert(Widest::kCols == kLayerNormMaxCols, "the launchers refuse what no layout holds");
    body(Widest{});
  }
}

// What row_sum needs of shared memory.
using Scratch = float[kMostThreads / 32];

// A thread's part of a row: vector i is that of the columns from column_of<L>(i, lane) on.
template <typename L>
using Part = float[L::kItems][kVector];

template <typename L>
__device__ __forceinline__ int column_of(int item, int lane) {
  return (item * L::kThreads + lane) * kVector;
}

// What dropout does to each element: which are kept, and what those are multiplied by.
struct Dropout {
  const int64_t* seed;  // in device memory, or null: no dropout
  uint32_t threshold;
  float scale;
};

inline Dropout dropout_of(const int64_t* seed, double p) {
  const double applied = seed == nullptr ? 0.0 : p;
  return {seed, dropout_threshold(applied), static_cast<float>(dropout_scale(applied))};
}

// Which elements of a thread's part of row `row` are kept: bit i * kVector + j is that of vector i's element j. One bit
// an element costs a single register, and a loop that is not unrolled none for the numbers that are drawn meanwhile.
// All threads of a warp call it together. Eight of them have a group of 32 columns of each vector: each draws one of the
// four blocks of every second group, and they exchange the bits.
template <typename L>
__device__ __forceinline__ uint32_t kept_of_part(const Dropout& dropout, int64_t row, int lane, int cols) {
  static_assert(L::kItems * kVector <= 32, "the bits of one word");
  static_assert(8 * kVector == kDropoutGroup, "eight threads share a group");
  if (dropout.seed == nullptr) return ~0u;
  const uint64_t seed = static_cast<uint64_t>(*dropout.seed);
  const int of_eight = lane % 8, first = lane - of_eight;
  uint32_t drawn = 0;  // in byte k the bits of a block of vector 2k + of_eight / 4
#pragma unroll 1
  for (int k = 0; 2 * k < L::kItems && column_of<L>(2 * k, 0) < cols; ++k) {
    const int group = column_of<L>(2 * k + of_eight / 4, first) / kDropoutGroup;
    const Words block = random_words(seed, static_cast<uint64_t>(row), group * 4 + of_eight % 4);
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) bits |= (draw_of(block.w[i / 2], i % 2) >= dropout.threshold ? 1u : 0u) << i;
    drawn |= bits << (8 * k);
  }
  uint32_t kept = 0;
#pragma unroll
  for (int parity = 0; parity < 2; ++parity) {
    // The thread's columns are those of two blocks' word of_eight / 2.
    const int source = first % 32 + 4 * parity + of_eight % 2 * 2;
    const uint32_t low = __shfl_sync(0xFFFFFFFFu, drawn, source), high = __shfl_sync(0xFFFFFFFFu, drawn, source + 1);
    const int word = of_eight / 2 * 2;
    kept |= ((low >> word & 0x03030303u) | (high >> word & 0x03030303u) << 2) << (4 * parity);
  }
  return kept;
}

// The factor of vector i's element j.
__device__ __forceinline__ float dropout_factor(const Dropout& dropout, uint32_t kept, int i, int j) {
  return (kept >> (i * kVector + j)) & 1u ? dropout.scale : 0.0f;
}

struct Statistics {
  float mean, rstd;
};

// Makes of `row`, which is 0 beyond its end, (row - mean) / sqrt(variance + eps); what is beyond the end is undefined.
template <typename L>
__device__ __forceinline__ Statistics normalise(Part<L>& row, int lane, int cols, float eps, float* scratch) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < L::kItems; ++i) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) sum += row[i][j];
  }
  const float mean = row_sum<L::kThreads>(sum, scratch) / static_cast<float>(cols);
  // A second pass, over registers, because mean(row^2) - mean(row)^2 cancels when the mean is large.
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < L::kItems; ++i) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      row[i][j] -= mean;
      if (column_of<L>(i, lane) + j < cols) squares += row[i][j] * row[i][j];
    }
  }
  const float rstd = rsqrtf(row_sum<L::kThreads>(squares, scratch) / static_cast<float>(cols) + eps);
#pragma unroll
  for (int i = 0; i < L::kItems; ++i) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) row[i][j] *= rstd;
  }
  return {mean, rstd};
}

// Makes of `grad`, the gradient of normalised * weight + bias, that of the norm's input.
// Beyond the row's end `grad` is 0.
template <typename L, typename P>
__device__ __forceinline__ void input_gradient(Part<L>& grad, const Part<L>& normalised, const P* weight, float rstd,
                                               int lane, int cols, bool aligned, float* scratch) {
  float sum = 0.0f, products = 0.0f;
#pragma unroll
  for (int i = 0; i < L::kItems; ++i) {
    float own[kVector];
    load(weight, column_of<L>(i, lane), cols, aligned, own);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      grad[i][j] *= own[j];
      sum += grad[i][j];
      products += grad[i][j] * normalised[i][j];
    }
  }
  const float average = row_sum<L::kThreads>(sum, scratch) / static_cast<float>(cols);
  const float average_product = row_sum<L::kThreads>(products, scratch) / static_cast<float>(cols);
#pragma unroll
  for (int i = 0; i < L::kItems; ++i) {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      grad[i][j] = rstd * (grad[i][j] - average - normalised[i][j] * average_product);
    }
  }
}

// The shared memory of a backward kernel with kSums vectors of sums over rows, which each group of threads keeps for
// itself: in registers they would leave too few for the row, or too few threads on a multiprocessor.
template <typename L, int kSums>
struct BackwardShared {
  float4 sums[kSums][L::kRows][L::kCols / kVector];
  Scratch scratch;
};

// The calling thread's part of a group's sums, vector i of it.
template <typename L, int kSums>
__device__ __forceinline__ float4& sums_of(BackwardShared<L, kSums>& shared, int which, int group, int i, int lane) {
  return shared.sums[which][group][i * L::kThreads + lane];
}

template <typename L, int kSums>
__device__ __forceinline__ void clear_sums(BackwardShared<L, kSums>& shared, int group, int lane) {
#pragma unroll
  for (int which = 0; which < kSums; ++which) {
#pragma unroll
    for (int i = 0; i < L::kItems; ++i) sums_of(shared, which, group, i, lane) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
}

__device__ __forceinline__ void add_to(float4& sum, const float (&v)[kVector]) {
  const float4 before = sum;
  sum = make_float4(before.x + v[0], before.y + v[1], before.z + v[2], before.w + v[3]);
}

// Writes a block's sums to row blockIdx.x of each of the matrices `partials`, (kSums, gridDim.x, cols). The groups'
// are added up in their order, the same in every run.
template <typename L, int kSums>
__device__ __forceinline__ void store_partials(BackwardShared<L, kSums>& shared, int cols, float* partials) {
  __syncthreads();
  for (int which = 0; which < kSums; ++which) {
    float* partial = partials + (static_cast<int64_t>(which) * gridDim.x + blockIdx.x) * cols;
    for (int col = threadIdx.x; col < cols; col += L::kBlock) {
      float sum = 0.0f;
      for (int group = 0; group < L::kRows; ++group) {
        sum += reinterpret_cast<const float*>(shared.sums[which][group])[col];
      }
      store_result(partial + col, sum);
    }
  }
}

}  // namespace earlybert
