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
  float scale;  // 1 / (1 - p), what a kept value is multiplied by
};

static inline Dropout make_dropout(uint64_t seed, double p) {
  return Dropout{seed, dropout_threshold(p), static_cast<float>(1.0 / (1.0 - p))};
}

// One vector register of 64-bit lanes. A lane carries a 32-bit value in its low half and anything in its
// high half: that is what the hardware's 32 x 32 -> 64 bit multiply reads, and it saves every shuffle.
#if defined(__AVX512F__)
constexpr int kLanes = 8;
#define EARLYBERT_LANES(operation, a, b) \
  reinterpret_cast<Lanes>(_mm512_##operation(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)))
#elif defined(__AVX2__)
constexpr int kLanes = 4;
#define EARLYBERT_LANES(operation, a, b) \
  reinterpret_cast<Lanes>(_mm256_##operation(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)))
#else
constexpr int kLanes = 2;
#if defined(__x86_64__)
#define EARLYBERT_LANES(operation, a, b) \
  reinterpret_cast<Lanes>(_mm_##operation(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)))
#endif
#endif
typedef uint64_t Lanes __attribute__((vector_size(8 * kLanes)));
typedef uint32_t HalfLanes __attribute__((vector_size(8 * kLanes)));

#if !defined(EARLYBERT_LANES)
#define EARLYBERT_LANES(operation, a, b) operation(a, b)
static inline Lanes mul_epu32(Lanes a, Lanes b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }
static inline Lanes unpacklo_epi64(Lanes a, Lanes b) { return Lanes{a[0], b[0]}; }
static inline Lanes unpackhi_epi64(Lanes a, Lanes b) { return Lanes{a[1], b[1]}; }
#endif

// scales[0 ... 4 * kLanes) of the elements of kLanes consecutive blocks.
static inline __attribute__((always_inline)) void block_scales(const Dropout& dropout, uint64_t block,
                                                               float* scales) {
  // Blocks in the order that makes the two interleaving unpacks below put the words in element order.
  Lanes order = {};
  for (int lane = 0; lane < kLanes; ++lane) order[lane] = lane % 2 * (kLanes / 2) + lane / 2;
  const Lanes zero = {}, m0 = zero + 0xD2511F53u, m1 = zero + 0xCD9E8D57u;
  Lanes c0 = order + block, c1 = c0 >> 32, c2 = zero, c3 = zero;
  uint32_t k0 = static_cast<uint32_t>(dropout.seed), k1 = static_cast<uint32_t>(dropout.seed >> 32);
  EARLYBERT_UNROLL
  for (int round = 0; round < 10; ++round) {
    const Lanes a = EARLYBERT_LANES(mul_epu32, c0, m0), b = EARLYBERT_LANES(mul_epu32, c2, m1);
    c0 = (b >> 32) ^ c1 ^ static_cast<uint64_t>(k0);
    c1 = b;
    c2 = (a >> 32) ^ c3 ^ static_cast<uint64_t>(k1);
    c3 = a;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  const Lanes w01 = (c0 & 0xFFFFFFFFu) | (c1 << 32), w23 = (c2 & 0xFFFFFFFFu) | (c3 << 32);
  uint32_t scale_bits;
  std::memcpy(&scale_bits, &dropout.scale, 4);
  const HalfLanes words[2] = {reinterpret_cast<HalfLanes>(EARLYBERT_LANES(unpacklo_epi64, w01, w23)),
                              reinterpret_cast<HalfLanes>(EARLYBERT_LANES(unpackhi_epi64, w01, w23))};
  for (int half = 0; half < 2; ++half) {
    const HalfLanes kept = reinterpret_cast<HalfLanes>(words[half] >= dropout.threshold) & scale_bits;
    std::memcpy(scales + half * 2 * kLanes, &kept, sizeof(kept));
  }
}

// Writes to scales[0, count) the factor of elements first ... first + count - 1: 0 or dropout.scale.
static inline void dropout_scales(const Dropout& dropout, uint64_t first, int64_t count,
                                  float* __restrict scales) {
  const uint32_t threshold = dropout.threshold;
  const float scale = dropout.scale;
  int64_t i = 0;
  const auto one_block = [&](int64_t begin, int64_t end) {
    const Words w = random_words(dropout.seed, (first + static_cast<uint64_t>(i)) / 4);
    const uint32_t words[4] = {w.w0, w.w1, w.w2, w.w3};
    for (int64_t j = begin; j < end; ++j) scales[i++] = words[j] >= threshold ? scale : 0.0f;
  };

  // A row whose width is no multiple of 4 begins in the middle of a block.
  const int64_t skip = static_cast<int64_t>(first % 4);
  if (skip != 0) one_block(skip, skip + count < 4 ? skip + count : 4);

  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    block_scales(dropout, (first + static_cast<uint64_t>(i)) / 4, scales + i);
  }
  while (i < count) one_block(0, count - i < 4 ? count - i : 4);
}

}  // namespace earlybert
