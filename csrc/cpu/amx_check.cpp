#include "amx_check.h"

#include "amx.h"

namespace earlybert {
namespace EARLYBERT_ISA {

#if defined(__AVX512BF16__)

static constexpr int64_t kDepth = 64, kCols = 32;  // two registers' along what is summed

// Pairs of bfloat16: the numbers of place i and what they are.
static float number(int64_t i, int half) { return static_cast<float>((7 * i + 5 * half) % 11 - 5); }
static uint32_t pair(int64_t i) {
  const float both[2] = {number(i, 0), number(i, 1)};
  uint32_t bits[2];
  std::memcpy(bits, both, sizeof(bits));
  return bits[0] >> 16 | (bits[1] & 0xFFFF0000);
}

template <typename Registers>
static bool multiplies(int64_t rows) {
  using Kernel = Amx<Registers>;
  alignas(64) uint32_t a[Kernel::kPanel * kDepth / 2], b[kCols * kDepth / 2];
  alignas(64) float c[Kernel::kPanel * kCols];
  for (int64_t i = 0; i < Kernel::kPanel * kDepth / 2; ++i) a[i] = pair(i);
  for (int64_t i = 0; i < kCols * kDepth / 2; ++i) b[i] = pair(3 * i);
  Kernel run(rows);
  run(kDepth / 2, a, b, c, kCols, false);
  run(kDepth / 2, a, b, c, kCols, true);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < kCols; ++col) {
      float sum = 0.0f;
      for (int64_t p = 0; p < kDepth / 2; ++p) {
        const int64_t square = p / kAmxRows * (Kernel::kPanel / kAmxRows) + row / kAmxRows;
        const int64_t left = square * kAmxElements + row % kAmxRows * kAmxRows + p % kAmxRows;
        const int64_t right = 3 * (p * kCols + col);
        for (int half = 0; half < 2; ++half) sum += number(left, half) * number(right, half);
      }
      if (c[row * kCols + col] != 2.0f * sum) return false;
    }
  }
  return true;
}

bool amx_multiplies(bool emulated) {
  constexpr int64_t kRows[] = {1, 16, 19, 32};
  for (const int64_t rows : kRows) {
    if (!(emulated ? multiplies<EmulatedAmxRegisters>(rows) : multiplies<AmxRegisters>(rows))) return false;
  }
  return true;
}

#else

bool amx_multiplies(bool) { return false; }

#endif

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
