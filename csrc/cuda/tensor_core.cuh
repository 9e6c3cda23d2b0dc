// Tensor cores and asynchronous copies, as compute capability 8.0 and later have them. Names and layouts are those of
// the PTX manual: with g = lane / 4 and c = lane % 4, a lane holds of
//   A (16 x 16, two values a register): (g, 2c..), (g + 8, 2c..), (g, 2c + 8..), (g + 8, 2c + 8..)
//   B (16 x 8):                         (2c.., g), (2c + 8.., g)
//   D (16 x 8, float32):                (g, 2c), (g, 2c + 1), (g + 8, 2c), (g + 8, 2c + 1)
// so that D, rounded and taken two tiles at a time, is an A.
#pragma once

#include <cstdint>

#include "types.cuh"

#if defined(EARLYBERT_EMULATED)
#include "tensor_core.h"
#endif

namespace earlybert {

constexpr uint32_t kHalfInfinity = 0x7C00;  // of fp16, the most that `halves_at_least` takes as `least`

#if defined(EARLYBERT_EMULATED)

template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::mma_m16n8k16<T>(d, a, b0, b1);
}
inline void load_matrices(uint32_t (&r)[4], const void* row) { emulator::ldmatrix_x4(r, row, false); }
inline void load_transposed(uint32_t (&r)[4], const void* row) { emulator::ldmatrix_x4(r, row, true); }
inline void copy_async_16(void* to, const void* from, bool there) {
  emulator::copy_later(to, from, there ? 16 : 0, 16);
}
inline unsigned computed_here(unsigned x) { return x; }
inline void commit_copies() { emulator::commit_copies(); }
inline void wait_for_all_but_last_copies() { emulator::wait_for_copies(1); }
inline void wait_for_copies() {
  emulator::commit_copies();
  emulator::wait_for_copies(0);
}
template <typename T>
uint32_t pack(float low, float high) {
  const T pair[2] = {from_float<T>(low), from_float<T>(high)};
  uint32_t bits;
  std::memcpy(&bits, pair, sizeof bits);
  return bits;
}
template <typename T>
uint32_t pack_positive(float low, float high) {
  return pack<T>(std::fmax(low, 0.0f), std::fmax(high, 0.0f));
}
template <typename T>
float2 unpack(uint32_t bits) {
  T pair[2];
  std::memcpy(pair, &bits, sizeof bits);
  return {to_float(pair[0]), to_float(pair[1])};
}
inline float exp2_fast(float x) { return std::exp2(x); }
inline uint32_t halves_at_least(uint32_t bits, uint32_t least) { return emulator::set_abs_geu_f16x2(bits, least); }

#else

// d += a b.
template <typename T>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

// Four 8 x 8 matrices of shared memory: lane i gives the 16 bytes of row i % 8 of matrix i / 8, and gets of each
// matrix the values (g, 2c) and (g, 2c + 1). The clobber keeps them behind the barrier that completes what they read.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same, of each matrix's transpose: the values (2c, g) and (2c + 1, g).
__device__ __forceinline__ void load_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// Begins to copy 16 bytes from global to shared memory; zeros where there is nothing to copy.
__device__ __forceinline__ void copy_async_16(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0)
               : "memory");
}

// x, and the compiler does not know that: what follows from it is computed after this point, in each round of a loop,
// where otherwise it would wait in registers.
__device__ __forceinline__ unsigned computed_here(unsigned x) {
  asm volatile("" : "+r"(x));
  return x;
}

// What this thread began to copy since the last call is a group, which may be empty.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all groups but the last one are there.
__device__ __forceinline__ void wait_for_all_but_last_copies() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }

// Until this thread's copies are there. Other threads see them after the next barrier.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Two values, rounded, in one register.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, __half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  }
  return bits;
}

// The same, and 0 for those below.
template <typename T>
__device__ __forceinline__ uint32_t pack_positive(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, __half>) {
    asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  }
  return bits;
}

template <typename T>
__device__ __forceinline__ float2 unpack(uint32_t bits) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half22float2(*reinterpret_cast<const __half2*>(&bits));
  } else {
    return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xFFFF0000u));
  }
}

// For two numbers of 15 bits, each in the low bits of a half, whether it is at least `least`'s: all bits of the half,
// or none. As fp16 without signs they have the same order up to infinity; beyond are NaNs, which count as more than
// all.
__device__ __forceinline__ uint32_t halves_at_least(uint32_t bits, uint32_t least) {
  uint32_t mask;
  asm("{.reg .b32 value; abs.f16x2 value, %1; set.geu.u32.f16x2 %0, value, %2;}" : "=r"(mask) : "r"(bits), "r"(least));
  return mask;
}

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

#endif

}  // namespace earlybert
