// Layer norm of rows that a group of threads holds in registers, its gradient, and the sums over rows that a backward
// kernel collects on the way.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "launch.cuh"
#include "layer_norm.h"
#include "rows.cuh"

namespace earlybert {

// A row is shared by kThreads threads, each with kItems vectors of kWidth columns in registers: a warp up to 1024
// columns, which covers BERT and needs no barrier, and a whole block beyond. Where rows are aligned, a vector is loaded
// and stored at once, 16 bytes of the widest dtype of rows; otherwise value by value. Rows that are not come of odd
// widths and of views, not of BERT: two layouts do for them, because each takes the compiler seconds a kernel.
//
// A backward kernel runs on at most kBackwardBlocks blocks, each of which writes one row of partial sums for every
// vector of sums. That number is fixed rather than read from the device, so that results do not depend on the device's
// size: it is what an H100, of 132 multiprocessors, holds at once when rows are aligned. The registers that a thread
// may have follow from that; it needs two to three for each of its columns, and some 50.
template <int kVectorWidth, bool kRowsAligned, int kThreadsPerRow, int kColsPerThread, int kThreadsPerBlock,
          int kBlocksPerMultiprocessor>
struct Layout {
  static constexpr int kWidth = kVectorWidth;
  static constexpr bool kAligned = kRowsAligned;
  static constexpr int kThreads = kThreadsPerRow, kItems = kColsPerThread / kWidth;
  static constexpr int kBlock = kThreadsPerBlock;
  static constexpr int kResident = kBlocksPerMultiprocessor;
  static constexpr int kRows = kBlock / kThreads;  // rows in flight in a block
  static constexpr int kCols = kThreads * kColsPerThread;
  static constexpr int kBackwardBlocks = 132 * kBlocksPerMultiprocessor;
  // A row on its way takes a register or half of one a column, beside what draws random numbers: 96 registers, or 128.
  static constexpr int kForwardResident = (kColsPerThread > 24 ? 512 : 640) / kBlock;
};

constexpr int kMostThreads = 256;

template <int kWidth, bool kAligned>
using Widest = Layout<kWidth, kAligned, kMostThreads, 32, kMostThreads, 1>;

// Calls `body` with the layout for the width of aligned rows, as `body(Layout{})`.
template <int kWidth, typename Body>
void with_aligned_layout(int64_t cols, Body body) {
  if (cols <= 512) {
    body(Layout<kWidth, true, 32, 16, 128, 4>{});
  } else if (cols <= 768) {
    body(Layout<kWidth, true, 32, 24, 128, 4>{});
  } else if (cols <= 1024) {
    body(Layout<kWidth, true, 32, 32, 128, 3>{});
  } else if (cols <= 4096) {
    body(Layout<kWidth, true, 128, 32, 128, 2>{});
  } else {
    static_assert(Widest<kWidth, true>::kCols == kLayerNormMaxCols, "the launchers refuse what no layout holds");
    body(Widest<kWidth, true>{});
  }
}

// The same for rows of values of up to `kBytes` bytes, which begin and end on 16 bytes, or not. Single values take more
// registers: two blocks where aligned rows have three are better than a stack.
template <int kBytes, typename Body>
void with_layout(int64_t cols, bool aligned, Body body) {
  constexpr int kWidth = 16 / kBytes;
  using Narrow = Layout<4, false, 32, 32, 128, 2>;
  if (aligned && cols % kWidth == 0) {
    with_aligned_layout<kWidth>(cols, body);
  } else if (cols <= Narrow::kCols) {
    body(Narrow{});
  } else {
    body(Widest<4, false>{});
  }
}

template <typename... Pointers>
bool on_16_bytes(Pointers... addresses) {
  return ((reinterpret_cast<std::uintptr_t>(addresses) % 16 == 0) && ...);
}

// What row_sum needs of shared memory.
using Scratch = float[kMostThreads / 32];

// A thread's part of a row: vector i is that of the columns from column_of<L>(i, lane) on.
template <typename L>
using Part = float[L::kItems][L::kWidth];

template <typename L>
__device__ __forceinline__ int column_of(int item, int lane) {
  return (item * L::kThreads + lane) * L::kWidth;
}

// A thread's vector of a row as it is in memory, where it is read and written 16 bytes at a time, or all at once.
template <typename T, typename L>
struct alignas(L::kWidth * sizeof(T) < 16 ? L::kWidth * sizeof(T) : 16) RawVector {
  T v[L::kWidth];
};

// Vector `item` of a thread's part of a row: 0 beyond the row's end.
template <typename L, typename T>
__device__ __forceinline__ RawVector<T, L> load_raw(const T* row, int item, int lane, int cols) {
  RawVector<T, L> raw = {};
  const int col = column_of<L>(item, lane);
  if constexpr (L::kAligned) {
    if (col < cols) raw = *reinterpret_cast<const RawVector<T, L>*>(row + col);
  } else {
#pragma unroll
    for (int j = 0; j < L::kWidth; ++j) {
      if (col + j < cols) raw.v[j] = row[col + j];
    }
  }
  return raw;
}

// The same as float32.
template <typename L, typename T>
__device__ __forceinline__ void load_item(const T* row, int item, int lane, int cols, float (&v)[L::kWidth]) {
  const RawVector<T, L> raw = load_raw<L>(row, item, lane, cols);
#pragma unroll
  for (int j = 0; j < L::kWidth; ++j) v[j] = to_float(raw.v[j]);
}

// *at = value by one instruction, which the compiler does not always make of an assignment, but one for each member.
template <typename Word>
__device__ __forceinline__ void store_word(Word* at, Word value) {
#if defined(EARLYBERT_EMULATED)
  store_result(at, value);
#else
  __stwb(at, value);
#endif
}

template <typename L, typename T>
__device__ __forceinline__ void store_item(T* row, int item, int lane, int cols, const float (&v)[L::kWidth]) {
  const int col = column_of<L>(item, lane);
  RawVector<T, L> raw;
#pragma unroll
  for (int j = 0; j < L::kWidth; ++j) raw.v[j] = from_float<T>(v[j]);
  if constexpr (L::kAligned) {
    using Word = std::conditional_t<sizeof(raw) == 16, uint4, uint2>;
    static_assert(sizeof(raw) == sizeof(Word), "16 bytes, or 8 where another dtype's are 16");
    Word word;
    memcpy(&word, &raw, sizeof(word));
    if (col < cols) store_word(reinterpret_cast<Word*>(row + col), word);
  } else {
#pragma unroll
    for (int j = 0; j < L::kWidth; ++j) {
      if (col + j < cols) store_result(row + col + j, raw.v[j]);
    }
  }
}

// A thread's part of a row as it is in memory: all of it is on its way before the first value is needed.
template <typename T, typename L>
struct RawPart {
  RawVector<T, L> items[L::kItems];

  __device__ __forceinline__ RawPart(const T* row, int lane, int cols) {
#pragma unroll
    for (int i = 0; i < L::kItems; ++i) items[i] = load_raw<L>(row, i, lane, cols);
  }
  __device__ __forceinline__ float at(int i, int j) const { return to_float(items[i].v[j]); }
};

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

// Which elements of a thread's part of row `row` are kept: bit i * kWidth + j is that of vector i's element j. One bit
// an element costs a single register, and a loop that is not unrolled none for the numbers that are drawn meanwhile.
// All threads of a warp call it together. Those that have a group of 32 columns of each vector, eight or four of them,
// draw its four blocks, eight for every second group, and exchange the bits.
template <typename L>
__device__ __forceinline__ uint32_t kept_of_part(const Dropout& dropout, int64_t row, int lane, int cols) {
  static_assert(L::kItems * L::kWidth <= 32, "the bits of one word");
  if (dropout.seed == nullptr) return ~0u;
  constexpr int kSharing = kDropoutGroup / L::kWidth, kGroups = kSharing / 4;  // threads; groups at a time
  static_assert(kGroups == 1 || kGroups == 2, "a byte of bits for each two vectors, or for each one");
  const uint64_t seed = static_cast<uint64_t>(*dropout.seed);
  const int own = lane % kSharing, first = lane - own;
  uint32_t drawn = 0;  // in byte k the bits of a block of vector kGroups * k + own / 4
#pragma unroll 1
  for (int k = 0; kGroups * k < L::kItems && column_of<L>(kGroups * k, 0) < cols; ++k) {
    const int group = column_of<L>(kGroups * k + own / 4, first) / kDropoutGroup;
    const Words block = random_words(seed, static_cast<uint64_t>(row), group * 4 + own % 4);
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) bits |= (draw_of(block.w[i / 2], i % 2) >= dropout.threshold ? 1u : 0u) << i;
    drawn |= bits << (8 * k);
  }
  uint32_t kept = 0;
  if constexpr (kGroups == 1) {
    // The thread's columns are those of all blocks' word `own`.
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const uint32_t bits = __shfl_sync(0xFFFFFFFFu, drawn, first % 32 + c);
      kept |= (bits >> (2 * own) & 0x03030303u) << (2 * c);
    }
  } else {
#pragma unroll
    for (int parity = 0; parity < 2; ++parity) {
      // The thread's columns are those of two blocks' word own / 2.
      const int source = first % 32 + 4 * parity + own % 2 * 2, word = own / 2 * 2;
      const uint32_t low = __shfl_sync(0xFFFFFFFFu, drawn, source);
      const uint32_t high = __shfl_sync(0xFFFFFFFFu, drawn, source + 1);
      kept |= ((low >> word & 0x03030303u) | (high >> word & 0x03030303u) << 2) << (4 * parity);
    }
  }
  return kept;
}

// The factor of vector i's element j.
template <typename L>
__device__ __forceinline__ float dropout_factor(const Dropout& dropout, uint32_t kept, int i, int j) {
  return (kept >> (i * L::kWidth + j)) & 1u ? dropout.scale : 0.0f;
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
    for (int j = 0; j < L::kWidth; ++j) sum += row[i][j];
  }
  const float mean = row_sum<L::kThreads>(sum, scratch) / static_cast<float>(cols);
  // A second pass, over registers, because mean(row^2) - mean(row)^2 cancels when the mean is large.
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < L::kItems; ++i) {
#pragma unroll
    for (int j = 0; j < L::kWidth; ++j) {
      row[i][j] -= mean;
      if (column_of<L>(i, lane) + j < cols) squares += row[i][j] * row[i][j];
    }
  }
  const float rstd = rsqrtf(row_sum<L::kThreads>(squares, scratch) / static_cast<float>(cols) + eps);
#pragma unroll
  for (int i = 0; i < L::kItems; ++i) {
#pragma unroll
    for (int j = 0; j < L::kWidth; ++j) row[i][j] *= rstd;
  }
  return {mean, rstd};
}

// Makes of `grad`, the gradient of normalised * weight + bias, that of the norm's input.
// Beyond the row's end `grad` is 0.
template <typename L, typename P>
__device__ __forceinline__ void input_gradient(Part<L>& grad, const Part<L>& normalised, const P* weight, float rstd,
                                               int lane, int cols, float* scratch) {
  float sum = 0.0f, products = 0.0f;
#pragma unroll
  for (int i = 0; i < L::kItems; ++i) {
    float own[L::kWidth];
    load_item<L>(weight, i, lane, cols, own);
#pragma unroll
    for (int j = 0; j < L::kWidth; ++j) {
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
    for (int j = 0; j < L::kWidth; ++j) {
      grad[i][j] = rstd * (grad[i][j] - average - normalised[i][j] * average_product);
    }
  }
}

// The shared memory of a backward kernel with kSums vectors of sums over rows, which each group of threads keeps for
// itself: in registers they would leave too few for the row, or too few threads on a multiprocessor. Columns stand in
// the order in which threads have them, four at a time, so that a warp's lie side by side.
template <typename L, int kSums>
struct BackwardShared {
  static constexpr int kFours = L::kWidth / 4;  // of a vector
  float4 sums[kSums][L::kRows][L::kItems][kFours][L::kThreads];
  Scratch scratch;
};

template <typename L, int kSums>
__device__ __forceinline__ void clear_sums(BackwardShared<L, kSums>& shared, int group, int lane) {
#pragma unroll
  for (int which = 0; which < kSums; ++which) {
#pragma unroll
    for (int i = 0; i < L::kItems; ++i) {
#pragma unroll
      for (int four = 0; four < L::kWidth / 4; ++four) {
        shared.sums[which][group][i][four][lane] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      }
    }
  }
}

// Adds to the sums `which` of the thread's vector i. Without the barrier, where the warp is together anyway, the
// assembler has the sums of many vectors in registers at a time, and those of the row on the stack.
template <typename L, int kSums>
__device__ __forceinline__ void add_to_sums(BackwardShared<L, kSums>& shared, int which, int group, int i, int lane,
                                            const float (&v)[L::kWidth]) {
#pragma unroll
  for (int four = 0; four < L::kWidth / 4; ++four) {
    float4& sum = shared.sums[which][group][i][four][lane];
    const float4 before = sum;
    const float* own = v + 4 * four;
    sum = make_float4(before.x + own[0], before.y + own[1], before.z + own[2], before.w + own[3]);
  }
  __syncwarp();
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
        const int vector = col / L::kWidth, in_vector = col % L::kWidth;
        const float4& four = shared.sums[which][group][vector / L::kThreads][in_vector / 4][vector % L::kThreads];
        sum += reinterpret_cast<const float*>(&four)[in_vector % 4];
      }
      store_result(partial + col, sum);
    }
  }
}

}  // namespace earlybert
