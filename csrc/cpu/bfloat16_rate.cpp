#include "bfloat16_rate.h"

#include "../common/macros.h"
#include "vec.h"

namespace earlybert {
namespace EARLYBERT_ISA {

#if defined(__AVX512BF16__)

static constexpr int kChains = 12;  // that do not wait for one another: more than either instruction's latency
static constexpr int kRounds = 100;
// The shortest counts: others may have been interrupted, or be of a core's first microseconds with wide registers, in
// which it is slow.
static constexpr int kTrials = 200;

// Clock ticks of one trial, in which every round adds once to every chain.
template <typename Add>
static unsigned long long ticks(Add add, float* sink) {
  __m512 sums[kChains] = {};
  const unsigned long long begin = __rdtsc();
  for (int round = 0; round < kRounds; ++round) {
    EARLYBERT_UNROLL
    for (int i = 0; i < kChains; ++i) sums[i] = add(sums[i]);
  }
  const unsigned long long end = __rdtsc();
  for (int i = 0; i < kChains; ++i) *sink += _mm512_cvtss_f32(sums[i]);
  return end - begin;
}

bool bfloat16_is_fast() {
  volatile float one = 1.0f;  // unknown to the compiler
  const __m512 factor = _mm512_set1_ps(one);
  const __m512bh pairs = reinterpret_cast<__m512bh>(_mm512_castps_si512(factor));
  volatile float kept;
  float sink = 0.0f;
  unsigned long long float32 = ~0ull, bfloat16 = ~0ull;
  for (int trial = 0; trial < kTrials; ++trial) {
    const unsigned long long a = ticks([&](__m512 sum) { return _mm512_fmadd_ps(factor, factor, sum); }, &sink);
    const unsigned long long b = ticks([&](__m512 sum) { return _mm512_dpbf16_ps(sum, pairs, pairs); }, &sink);
    float32 = a < float32 ? a : float32;
    bfloat16 = b < bfloat16 ? b : bfloat16;
  }
  kept = sink;
  static_cast<void>(kept);
  return 2 * bfloat16 < 3 * float32;  // it does the work of two
}

#else

bool bfloat16_is_fast() { return false; }

#endif

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
