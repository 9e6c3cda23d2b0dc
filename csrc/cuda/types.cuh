// Dtypes inside kernels and in their launchers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "launch.h"

namespace earlybert {

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

// *at = value, where a result goes. The emulator sees to it that a launch does so once.
template <typename T>
__device__ __forceinline__ void store_result(T* at, T value) {
#if defined(EARLYBERT_EMULATED)
  emulator::aligned(at, alignof(T));
  emulator::stored(at, sizeof(T));
#endif
  *at = value;
}

template <typename T>
struct Type {
  using type = T;
};

// Calls `body` with the C++ type of a dtype in half precision, as `body(Type<__half>{})`.
template <typename Body>
void with_half_type(Dtype dtype, Body body) {
  if (dtype == Dtype::float16) {
    body(Type<__half>{});
  } else {
    body(Type<__nv_bfloat16>{});
  }
}

// Calls `body` with the C++ type of any dtype.
template <typename Body>
void with_type(Dtype dtype, Body body) {
  if (dtype == Dtype::float32) {
    body(Type<float>{});
  } else {
    with_half_type(dtype, body);
  }
}

}  // namespace earlybert
