// Device helpers for kernels in which a group of threads shares a row and each thread holds vectors of 4
// neighbouring columns: 4 because that is at most 16 bytes.
#pragma once

#include <cstdint>

#include "../common/counter_rng.h"
#include "types.cuh"

namespace earlybert {

constexpr int kVector = 4;

template <typename T>
struct alignas(kVector * sizeof(T)) Vector {
  T v[kVector];
};

template <typename T>
bool on_vector(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % sizeof(Vector<T>) == 0;
}

// row[col ... col + 3] as float32, 0 beyond the row's end. `aligned`: cols is a multiple of 4 and every row
// begins on a vector's boundary.
template <typename T>
__device__ __forceinline__ void load(const T* row, int col, int cols, bool aligned, float (&v)[kVector]) {
  if (aligned) {
    Vector<T> loaded = {};
    if (col < cols) loaded = *reinterpret_cast<const Vector<T>*>(row + col);
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] = to_float(loaded.v[j]);
  } else {
#pragma unroll
    for (int j = 0; j < kVector; ++j) v[j] = col + j < cols ? to_float(row[col + j]) : 0.0f;
  }
}

template <typename T>
__device__ __forceinline__ void store(T* row, int col, int cols, bool aligned, const float (&v)[kVector]) {
  if (aligned) {
    Vector<T> stored;
#pragma unroll
    for (int j = 0; j < kVector; ++j) stored.v[j] = from_float<T>(v[j]);
    if (col < cols) store_result(reinterpret_cast<Vector<T>*>(row + col), stored);
  } else {
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      if (col + j < cols) store_result(row + col + j, from_float<T>(v[j]));
    }
  }
}

// The sum of `v` over the kThreads threads that share a row, the same in each of them and in every run.
// kThreads is 32 (a warp) or the size of the block; `scratch` is used in the second case only.
template <int kThreads>
__device__ __forceinline__ float row_sum(float v, float* scratch) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, distance);
  if constexpr (kThreads > 32) {
    __syncthreads();  // the previous sum's readers are done
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kThreads / 32; ++warp) v += scratch[warp];
  }
  return v;
}

}  // namespace earlybert
