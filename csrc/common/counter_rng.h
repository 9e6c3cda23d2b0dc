// The counter-based random numbers behind every dropout mask.
//
// The rule, the same here, on the GPU and in earlybert_kernels/reference/counter_rng.py, which says why: the tensor is
// seen as rows of its last dimension. A group of 32 columns of row r draws from four blocks, Philox-4x32-7 at the
// counters (block, r >> 32, r % 2^32, 0) under the 64-bit key `seed`, with block = 4 * group + 0 ... 3. Column
// 8n + 2c + h of the group draws the low 15 bits of half h of word n of block c, and is kept when they are at least
// dropout_threshold(p). Masks are never stored: whoever needs one again regenerates it.
//
// Philox is from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, where 7 rounds are the fewest
// that pass BigCrush.
#pragma once

#include <cstdint>

#include "macros.h"

namespace earlybert {

constexpr int kPhiloxRounds = 7;
constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kKeyStep0 = 0x9E3779B9u, kKeyStep1 = 0xBB67AE85u;

constexpr int kDropoutGroup = 32;     // columns that share four blocks
constexpr uint32_t kDraws = 1u << 15;  // different ones

struct Words {
  uint32_t w[4];
};

// All 64 bits of a product. nvcc makes two instructions of the multiplication in C++.
template <uint32_t kFactor>
EARLYBERT_HOST_DEVICE uint64_t multiply(uint32_t x) {
#if defined(__CUDA_ARCH__)
  uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(x), "n"(kFactor));
  return product;
#else
  return static_cast<uint64_t>(x) * kFactor;
#endif
}

// Philox-4x32 of one counter under one key.
EARLYBERT_HOST_DEVICE Words philox(Words c, uint32_t k0, uint32_t k1, int rounds = kPhiloxRounds) {
  EARLYBERT_UNROLL
  for (int round = 0; round < rounds; ++round) {
    const uint64_t a = multiply<kMultiplier0>(c.w[0]), b = multiply<kMultiplier1>(c.w[2]);
    c = Words{{static_cast<uint32_t>(b >> 32) ^ c.w[1] ^ k0, static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ c.w[3] ^ k1, static_cast<uint32_t>(a)}};
    k0 += kKeyStep0;
    k1 += kKeyStep1;
  }
  return c;
}

// A block of a row.
EARLYBERT_HOST_DEVICE Words random_words(uint64_t seed, uint64_t row, uint32_t block) {
  return philox(Words{{block, static_cast<uint32_t>(row >> 32), static_cast<uint32_t>(row), 0u}},
                static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// The draw in a half of a word: 0 is the low one.
EARLYBERT_HOST_DEVICE uint32_t draw_of(uint32_t word, int half) { return (word >> (16 * half)) & (kDraws - 1); }

// The smallest draw that is kept: p * 2^15 rounded, for 0 <= p < 1.
EARLYBERT_HOST_DEVICE uint32_t dropout_threshold(double p) {
  const uint32_t rounded = static_cast<uint32_t>(p * kDraws + 0.5);
  return rounded < kDraws ? rounded : kDraws - 1;
}

// What a kept value is multiplied by: one over the probability that it is kept.
EARLYBERT_HOST_DEVICE double dropout_scale(double p) {
  return static_cast<double>(kDraws) / static_cast<double>(kDraws - dropout_threshold(p));
}

}  // namespace earlybert
