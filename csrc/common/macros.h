// Lets one header compile with g++ for the CPU extension and with nvcc for the CUDA extension. A function that is
// marked so is static, also as a member.
#pragma once

#if defined(__CUDACC__)
#define EARLYBERT_HOST_DEVICE static __host__ __device__ __forceinline__
#if defined(__CUDA_ARCH__)
#define EARLYBERT_UNROLL _Pragma("unroll")
#else
#define EARLYBERT_UNROLL  // nvcc's host pass: g++ warns of the pragma
#endif
#else
// `static`: the CPU sources are compiled once per instruction set, and a shared inline function could be
// linked into the baseline build from the AVX-512 one.
#define EARLYBERT_INLINE static inline __attribute__((always_inline))
#define EARLYBERT_HOST_DEVICE EARLYBERT_INLINE
#define EARLYBERT_UNROLL _Pragma("GCC unroll 16")
#endif
