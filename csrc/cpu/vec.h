// One vector register of floats, as wide as the instruction set has it. All of it is inlined: how much else a file has
// decides what the compiler would.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../common/macros.h"

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
typedef uint16_t VecHalf __attribute__((vector_size(2 * kVec)));

EARLYBERT_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
EARLYBERT_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof(v)); }
EARLYBERT_INLINE Vec splat(float x) { return x - Vec{}; }  // + would have to turn -0 into 0

#if defined(__AVX512F__)
EARLYBERT_INLINE __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}
#endif

// The first `count` floats at p, zeros behind them; memory behind them is not touched. Any count will do: one of 0 or
// less is none, one of kVec or more all.
EARLYBERT_INLINE Vec load_some(const float* p, int64_t count) {
  if (count >= kVec) return load(p);
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(_mm512_maskz_loadu_ps(first_lanes(count), p));
#else
  float lanes[kVec] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
#endif
}
EARLYBERT_INLINE void store_some(float* p, Vec v, int64_t count) {
  if (count >= kVec) return store(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, first_lanes(count), reinterpret_cast<__m512>(v));
#else
  float lanes[kVec];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
#endif
}
EARLYBERT_INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }

EARLYBERT_INLINE float sum_lanes(Vec v) {
  float lanes[kVec], total = 0.0f;
  store(lanes, v);
  for (int i = 0; i < kVec; ++i) total += lanes[i];
  return total;
}
EARLYBERT_INLINE float max_lanes(Vec v) {
  float lanes[kVec];
  store(lanes, v);
  float largest = lanes[0];
  for (int i = 1; i < kVec; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

// x rounded to bfloat16: to nearest, ties to even, subnormal numbers to 0 and NaN to a quiet one, as AVX512-BF16's
// instruction does it.
EARLYBERT_INLINE Vec to_bfloat16(Vec x) {
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

// bfloat16 in memory: the upper half of a float32.
EARLYBERT_INLINE float widen(float x) { return x; }
EARLYBERT_INLINE float widen(uint16_t x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof(wide));
  return wide;
}
EARLYBERT_INLINE Vec load(const uint16_t* p) {
  VecHalf half;
  std::memcpy(&half, p, sizeof(half));
  return reinterpret_cast<Vec>(__builtin_convertvector(half, VecInt) << 16);
}
EARLYBERT_INLINE void store(uint16_t* p, Vec v) {
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
#else
  const VecHalf half = __builtin_convertvector((reinterpret_cast<VecInt>(to_bfloat16(v)) >> 16) & 0xFFFF, VecHalf);
#endif
  std::memcpy(p, &half, sizeof(half));
}
EARLYBERT_INLINE Vec load_some(const uint16_t* p, int64_t count) {
  if (count >= kVec) return load(p);
#if defined(__AVX512F__)
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(count), p));
  return reinterpret_cast<Vec>(_mm512_slli_epi32(wide, 16));
#else
  uint16_t lanes[kVec] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
#endif
}
EARLYBERT_INLINE void store_some(uint16_t* p, Vec v, int64_t count) {
  if (count >= kVec) return store(p, v);
  uint16_t lanes[kVec];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

// Transposes kVec registers.
EARLYBERT_INLINE void transpose(Vec* v) {
#if defined(__AVX512F__)
  // Shuffles of one source register a result, where those below would need an index register: twice as fast.
  __m512d pairs[16];
  __m512 quads[16];
  EARLYBERT_UNROLL
  for (int i = 0; i < 16; i += 2) {
    const __m512 a = reinterpret_cast<__m512>(v[i]), b = reinterpret_cast<__m512>(v[i + 1]);
    pairs[i] = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
    pairs[i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
  }
  EARLYBERT_UNROLL
  for (int i = 0; i < 16; i += 4) {  // now quads[i + n] has columns n, 4 + n, 8 + n and 12 + n of rows i to i + 3
    quads[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[i], pairs[i + 2]));
    quads[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[i], pairs[i + 2]));
    quads[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(pairs[i + 1], pairs[i + 3]));
    quads[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(pairs[i + 1], pairs[i + 3]));
  }
  constexpr int kEven = 0x88, kOdd = 0xDD;  // which quarters of either source
  EARLYBERT_UNROLL
  for (int n = 0; n < 4; ++n) {
    const __m512 even_low = _mm512_shuffle_f32x4(quads[n], quads[4 + n], kEven);
    const __m512 even_high = _mm512_shuffle_f32x4(quads[8 + n], quads[12 + n], kEven);
    const __m512 odd_low = _mm512_shuffle_f32x4(quads[n], quads[4 + n], kOdd);
    const __m512 odd_high = _mm512_shuffle_f32x4(quads[8 + n], quads[12 + n], kOdd);
    v[n] = reinterpret_cast<Vec>(_mm512_shuffle_f32x4(even_low, even_high, kEven));
    v[4 + n] = reinterpret_cast<Vec>(_mm512_shuffle_f32x4(odd_low, odd_high, kEven));
    v[8 + n] = reinterpret_cast<Vec>(_mm512_shuffle_f32x4(even_low, even_high, kOdd));
    v[12 + n] = reinterpret_cast<Vec>(_mm512_shuffle_f32x4(odd_low, odd_high, kOdd));
  }
#elif defined(__GNUC__) && !defined(__clang__)
  EARLYBERT_UNROLL
  for (int half = kVec / 2; half > 0; half /= 2) {
    VecInt low, high;
    for (int lane = 0; lane < kVec; ++lane) {
      low[lane] = (lane & half) == 0 ? lane : kVec + lane - half;
      high[lane] = (lane & half) == 0 ? lane + half : kVec + lane;
    }
    EARLYBERT_UNROLL
    for (int i = 0; i < kVec; ++i) {
      if ((i & half) != 0) continue;
      const Vec a = v[i], b = v[i + half];
      v[i] = __builtin_shuffle(a, b, low);
      v[i + half] = __builtin_shuffle(a, b, high);
    }
  }
#else
  for (int i = 0; i < kVec; ++i) {
    for (int n = 0; n < i; ++n) {
      const float above = v[n][i];
      v[n][i] = v[i][n];
      v[i][n] = above;
    }
  }
#endif
}

EARLYBERT_INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// e^x for x <= 0, within 2 units in the last place; below -87, where the result would be subnormal, e^-87.
// NaN stays NaN (`max` is its second argument where one is NaN; the last step multiplies for the same reason).
// x = n log 2 + r with |r| <= log(2) / 2, and a polynomial for e^r (the minimax one of Cephes' expf).
EARLYBERT_INLINE Vec exp_negative(Vec x) {
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
