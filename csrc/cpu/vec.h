// One vector register of floats, as wide as the instruction set has it.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace earlybert {
namespace EARLYBERT_ISA {

#if defined(__AVX512F__)
constexpr int kVec = 16;
#elif defined(__AVX2__)
constexpr int kVec = 8;
#else
constexpr int kVec = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kVec)));
typedef int32_t VecInt __attribute__((vector_size(4 * kVec)));

static inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
static inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }
static inline Vec splat(float x) { return x - Vec{}; }  // + would have to turn -0 into 0

// The first `count` floats at p, zeros behind them; memory behind them is not touched. Any count will do: one of 0 or
// less is none, one of kVec or more all.
static inline Vec load_some(const float* p, int64_t count) {
#if defined(__AVX512F__)
  const __mmask16 some = count >= 16 ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
  return reinterpret_cast<Vec>(_mm512_maskz_loadu_ps(some, p));
#else
  if (count >= kVec) return load(p);
  float lanes[kVec] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
#endif
}
static inline void store_some(float* p, Vec v, int64_t count) {
#if defined(__AVX512F__)
  const __mmask16 some = count >= 16 ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
  _mm512_mask_storeu_ps(p, some, reinterpret_cast<__m512>(v));
#else
  if (count >= kVec) return store(p, v);
  float lanes[kVec];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
#endif
}
static inline Vec max(Vec a, Vec b) { return a > b ? a : b; }

static inline float sum_lanes(Vec v) {
  float lanes[kVec], total = 0.0f;
  store(lanes, v);
  for (int i = 0; i < kVec; ++i) total += lanes[i];
  return total;
}
static inline float max_lanes(Vec v) {
  float lanes[kVec];
  store(lanes, v);
  float largest = lanes[0];
  for (int i = 1; i < kVec; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

// x rounded to bfloat16: to nearest, ties to even, subnormal numbers to 0 and NaN to a quiet one, as AVX512-BF16's
// instruction does it.
static inline Vec to_bfloat16(Vec x) {
#if defined(__AVX512BF16__)
  const __m512i low = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x))));
  return reinterpret_cast<Vec>(_mm512_slli_epi32(low, 16));
#else
  const VecInt bits = reinterpret_cast<VecInt>(x), size = bits & 0x7FFFFFFF;
  VecInt rounded = bits + 0x7FFF + ((bits >> 16) & 1);
  rounded = size > 0x7F800000 ? (bits | 0x400000) : rounded;
  rounded = size < 0x00800000 ? (bits ^ size) : rounded;
  return reinterpret_cast<Vec>(rounded & static_cast<int32_t>(0xFFFF0000));
#endif
}

static inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// e^x for x <= 0, within 2 units in the last place; below -87, where the result would be subnormal, e^-87.
// NaN stays NaN (`max` is its second argument where one is NaN; the last step multiplies for the same reason).
// x = n log 2 + r with |r| <= log(2) / 2, and a polynomial for e^r (the minimax one of Cephes' expf).
static inline Vec exp_negative(Vec x) {
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  x = max(splat(-87.0f), x);
  const Vec shifted = x * 1.44269504f + magic;
  const Vec n = shifted - magic;
  const VecInt exponent = reinterpret_cast<VecInt>(shifted) - reinterpret_cast<VecInt>(magic);
  const Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  return p * reinterpret_cast<Vec>((exponent + 127) << 23);
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
