// What the kernels use of CUDA's language and runtime, for the emulator.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "emulator.h"

#define EARLYBERT_EMULATED 1

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

inline const emulator::Index &threadIdx = emulator::position.thread, &blockIdx = emulator::position.block,
                             &blockDim = emulator::position.block_size, &gridDim = emulator::position.grid_size;

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// The runtime: one device, which never fails.

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  // A small GPU, so that what depends on its size is reached by small tests; shared memory is that of sm_80.
  *value = attribute == cudaDevAttrMultiProcessorCount ? 4 : 163 * 1024;
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  emulator::run({grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, config->dynamicSmemBytes,
                [&] { kernel(static_cast<Parameters>(arguments)...); });
  return cudaSuccess;
}

// Threads of a block.

inline void __syncthreads() { emulator::barrier(); }

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
  int none = 0;
  emulator::collective(mask, &none, [](void* const*) {});
}

namespace emulator {

// Every lane gets the value of lane `source(lane, argument)`, its own where that is none.
template <typename T, int (*source)(int, int)>
T shuffle(unsigned mask, T value, int argument) {
  struct Own {
    T in, out;
    int argument;
  } own{value, value, argument};
  collective(mask, &own, [](void* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes[lane] == nullptr) continue;
      Own& mine = *static_cast<Own*>(lanes[lane]);
      const int from = source(lane, mine.argument);
      if (from < 0 || from > 31) continue;
      if (lanes[from] == nullptr) fail("a shuffle reads a lane that takes no part");
      mine.out = static_cast<Own*>(lanes[from])->in;
    }
  });
  return own.out;
}

inline int lane_xor(int lane, int mask) { return lane ^ mask; }
inline int lane_down(int lane, int distance) { return lane + distance; }
inline int lane_up(int lane, int distance) { return lane - distance; }
inline int lane_at(int, int lane) { return lane % 32; }

}  // namespace emulator

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return emulator::shuffle<T, emulator::lane_xor>(mask, value, lanes);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int distance) {
  return emulator::shuffle<T, emulator::lane_down>(mask, value, distance);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int distance) {
  return emulator::shuffle<T, emulator::lane_up>(mask, value, distance);
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return emulator::shuffle<T, emulator::lane_at>(mask, value, lane);
}

// Byte i of the result is the one of x (0-3) and y (4-7) that the selector's hexadecimal digit i says.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = x | static_cast<uint64_t>(y) << 32;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<unsigned>(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xFF) << (8 * i);
  }
  return result;
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  struct Own {
    int predicate;
    unsigned votes;
  } own{predicate, 0};
  emulator::collective(mask, &own, [](void* const* lanes) {
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes[lane] != nullptr && static_cast<Own*>(lanes[lane])->predicate != 0) votes |= 1u << lane;
    }
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes[lane] != nullptr) static_cast<Own*>(lanes[lane])->votes = votes;
    }
  });
  return own.votes;
}

// The lanes that have the same value.
template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
  struct Own {
    T value;
    unsigned peers;
  } own{value, 0};
  emulator::collective(mask, &own, [](void* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      if (lanes[lane] == nullptr) continue;
      Own& mine = *static_cast<Own*>(lanes[lane]);
      for (int other = 0; other < 32; ++other) {
        if (lanes[other] == nullptr) continue;
        if (static_cast<Own*>(lanes[other])->value == mine.value) mine.peers |= 1u << other;
      }
    }
  });
  return own.peers;
}

// Atomics of integers: threads take turns anyway.
template <typename T>
T atomicAdd(T* at, T value) {
  static_assert(!std::is_floating_point_v<T>, "sums of floats depend on their order");
  const T before = *at;
  *at = before + value;
  return before;
}

// Arithmetic.

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
#define __expf(x) std::exp(static_cast<float>(x))
#define __logf(x) std::log(static_cast<float>(x))
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __uint_as_float(unsigned x) {
  float y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
inline unsigned __float_as_uint(float x) {
  unsigned y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}
template <typename T>
T __ldg(const T* at) {
  emulator::aligned(at, alignof(T));
  return *at;
}
template <typename T>
T min(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
T max(T a, T b) {
  return a > b ? a : b;
}
