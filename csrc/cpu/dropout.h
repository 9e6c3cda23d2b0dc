// Dropout scales for a run of elements: Philox on vectors of counters.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../common/counter_rng.h"

namespace earlybert {

struct Dropout {
  uint64_t seed;
  uint32_t threshold;
  float scale;  // what a kept value is multiplied by
};

static inline Dropout make_dropout(uint64_t seed, double p) {
  return Dropout{seed, dropout_threshold(p), static_cast<float>(dropout_scale(p))};
}

// One vector register of 64-bit lanes. A lane carries a 32-bit value in its low half and anything in its
// high half: that is what the hardware's 32 x 32 -> 64 bit multiply reads, and it saves every shuffle.
#if defined(__AVX512F__)
constexpr int kLanes = 8;
#define EARLYBERT_MULTIPLY(a, b) \
  reinterpret_cast<Lanes>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)))
#elif defined(__AVX2__)
constexpr int kLanes = 4;
#define EARLYBERT_MULTIPLY(a, b) \
  reinterpret_cast<Lanes>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)))
#else
constexpr int kLanes = 2;
#if defined(__x86_64__)
#define EARLYBERT_MULTIPLY(a, b) \
  reinterpret_cast<Lanes>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)))
#else
#define EARLYBERT_MULTIPLY(a, b) (((a) & 0xFFFFFFFFu) * ((b) & 0xFFFFFFFFu))
#endif
#endif
typedef uint64_t Lanes __attribute__((vector_size(8 * kLanes)));
typedef int32_t HalfLanes __attribute__((vector_size(8 * kLanes)));

// Columns whose draws fill all lanes, and those that are done at once: whole groups.
constexpr int kLaneColumns = 8 * kLanes;
constexpr int kColumns = kLaneColumns < kDropoutGroup ? kDropoutGroup : kLaneColumns;

// scales[0 ... kColumns) of the columns of a row from the one that block `first`, a multiple of 4, begins with.
static inline __attribute__((always_inline)) void block_scales(const Dropout& dropout, uint64_t row, uint32_t first,
                                                               float* scales) {
  uint32_t scale_bits;
  std::memcpy(&scale_bits, &dropout.scale, 4);
  Lanes number = {};
  for (int lane = 0; lane < kLanes; ++lane) number[lane] = lane;
  const Lanes zero = {}, m0 = zero + kMultiplier0, m1 = zero + kMultiplier1;
  for (int block = 0; block < kColumns / 8; block += kLanes) {
    Lanes c0 = number + (first + block), c1 = zero + (row >> 32), c2 = zero + row, c3 = zero;
    uint32_t k0 = static_cast<uint32_t>(dropout.seed), k1 = static_cast<uint32_t>(dropout.seed >> 32);
    EARLYBERT_UNROLL
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const Lanes a = EARLYBERT_MULTIPLY(c0, m0), b = EARLYBERT_MULTIPLY(c2, m1);
      c0 = (b >> 32) ^ c1 ^ static_cast<uint64_t>(k0);
      c1 = b;
      c2 = (a >> 32) ^ c3 ^ static_cast<uint64_t>(k1);
      c3 = a;
      k0 += kKeyStep0;
      k1 += kKeyStep1;
    }
    const Lanes words[4] = {c0, c1, c2, c3};
    for (int n = 0; n < 4; ++n) {
      // A lane's word to its two draws, in columns side by side; those of up to four lanes go side by side, too.
      const Lanes draws = (words[n] & (kDraws - 1)) | ((words[n] << 16) & static_cast<uint64_t>(kDraws - 1) << 32);
      const HalfLanes kept = (reinterpret_cast<HalfLanes>(draws) >= static_cast<int32_t>(dropout.threshold)) &
                             static_cast<int32_t>(scale_bits);
      for (int lane = 0; lane < kLanes; lane += 4) {
        const int count = kLanes < 4 ? kLanes : 4;  // lanes of one group
        float* group = scales + (block + lane) / 4 * kDropoutGroup + 8 * n + 2 * ((block + lane) % 4);
        std::memcpy(group, reinterpret_cast<const char*>(&kept) + 8 * lane, 8 * count);
      }
    }
  }
}

// Writes to scales[0, count) the factors of a row's columns first ... first + count - 1: 0 or dropout.scale.
// `first` is a multiple of 32.
static inline void dropout_scales(const Dropout& dropout, uint64_t row, int64_t first, int64_t count,
                                  float* __restrict scales) {
  int64_t i = 0;
  for (; i + kColumns <= count; i += kColumns) {
    block_scales(dropout, row, static_cast<uint32_t>((first + i) / 8), scales + i);
  }
  if (i < count) {
    float rest[kColumns];
    block_scales(dropout, row, static_cast<uint32_t>((first + i) / 8), rest);
    std::memcpy(scales + i, rest, sizeof(float) * static_cast<std::size_t>(count - i));
  }
}

}  // namespace earlybert
