// The counter-based random numbers behind every dropout mask.
//
// The rule, the same here, on the GPU and in earlybert_kernels/reference/counter_rng.py: element i of a
// tensor (its index in row-major order) draws word i % 4 of Philox-4x32-10 at counter (i / 4, 0) under the
// 64-bit key `seed`, and is kept when that word >= threshold(p). All 32 bits take part, so p = 0.1 drops
// 0.1 of the elements to within 2^-32. Masks are never stored: whoever needs one again regenerates it.
//
// Philox is from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

#include "macros.h"

namespace earlybert {

struct Words {
  uint32_t w0, w1, w2, w3;
};

// Philox-4x32-10 of one counter under one key.
EARLYBERT_HOST_DEVICE Words philox(Words c, uint32_t k0, uint32_t k1) {
  EARLYBERT_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = static_cast<uint64_t>(c.w0) * 0xD2511F53u;
    const uint64_t b = static_cast<uint64_t>(c.w2) * 0xCD9E8D57u;
    c = Words{static_cast<uint32_t>(b >> 32) ^ c.w1 ^ k0, static_cast<uint32_t>(b),
              static_cast<uint32_t>(a >> 32) ^ c.w3 ^ k1, static_cast<uint32_t>(a)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// The words of elements 4 * block ... 4 * block + 3.
EARLYBERT_HOST_DEVICE Words random_words(uint64_t seed, uint64_t block) {
  return philox(Words{static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), 0u, 0u},
                static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// An element is kept when its word is at least this; 0 <= p < 1, so the product stays below 2^32.
EARLYBERT_HOST_DEVICE uint32_t dropout_threshold(double p) {
  return static_cast<uint32_t>(static_cast<uint64_t>(p * 4294967296.0));
}

}  // namespace earlybert
