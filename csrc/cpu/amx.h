// The micro-kernel of AMX, which multiplies tiles of bfloat16 (Intel, since Sapphire Rapids): two by two registers of
// c, 32 rows and 32 columns, of two registers of a and two of b. A panel of b lies as AVX512-BF16 has it; one of a is
// registers one after the other, row by row. Depth is filled up with zeros to a whole register's.
//
// A product sums in another order than AVX512-BF16's: of 32 neighbours along what is summed the even and the odd ones
// apart, from 0, by fused multiply-adds; then both sums together, then what was there. Alike are rounding, to nearest
// even, and that subnormal numbers are 0, before and after.
#pragma once

#include <cstdint>
#include <cstring>

#include "../common/macros.h"
#include "factor.h"
#include "pairs.h"
#include "vec.h"

#if defined(__AVX512BF16__)

namespace earlybert {
namespace EARLYBERT_ISA {

constexpr int64_t kAmxRows = 16;  // of a register; a row is 16 elements: float32, or pairs of bfloat16
constexpr int64_t kAmxElements = kAmxRows * 16;

// Registers by what they hold, of rows and columns the first 16 (0) or the next (1).
enum AmxRegister { kC00, kC01, kC10, kC11, kA0, kA1, kB0, kB1, kAmxRegisters };

// How many rows each register has where c has so many.
struct AmxShape {
  uint8_t rows[kAmxRegisters];
  explicit AmxShape(int64_t count) {
    const uint8_t upper = static_cast<uint8_t>(min(count, kAmxRows)), lower = static_cast<uint8_t>(count - upper);
    rows[kC00] = rows[kC01] = rows[kA0] = upper;
    rows[kC10] = rows[kC11] = rows[kA1] = lower;
    rows[kB0] = rows[kB1] = kAmxRows;
  }
};

// The processor's. They are laid out for every tile's rows and released behind it: others in the process, as torch's
// oneDNN, lay them out for themselves, and a thread with registers in use has 8 KiB more to be saved when it is
// switched out. Not GCC's functions: those take numbers of registers that are literals, and do not say that they read
// memory.
class AmxRegisters {
 public:
  explicit AmxRegisters(const AmxShape& shape) {
    struct {
      uint8_t palette = 1, first_row = 0, none[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } layout;
    static_assert(sizeof(layout) == 64, "as the instruction has it");
    for (int i = 0; i < kAmxRegisters; ++i) {
      layout.rows[i] = shape.rows[i];
      layout.row_bytes[i] = shape.rows[i] == 0 ? 0 : 64;
    }
    asm volatile("ldtilecfg %0" : : "m"(layout));
  }
  AmxRegisters(const AmxRegisters&) = delete;
  ~AmxRegisters() { asm volatile("tilerelease"); }

  template <AmxRegister kTo>
  void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTo));
  }
  // Rows so many elements apart.
  template <AmxRegister kTo>
  void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(4 * stride), "i"(kTo) : "memory");
  }
  template <AmxRegister kFrom>
  void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(4 * stride), "i"(kFrom) : "memory");
  }
  template <AmxRegister kC, AmxRegister kA, AmxRegister kB>
  void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
};

// What the instruction multiplies, by its definition, under a control word that has its rounding and no subnormal
// numbers. Not inlined, so that no arithmetic can leave the span in which that is in force.
static __attribute__((noinline)) void amx_multiply(int64_t rows, float* c, const uint32_t* a, const uint32_t* b) {
  for (int64_t m = 0; m < rows; ++m) {
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    for (int64_t k = 0; k < kAmxRows; ++k) {
      const __m512i left = _mm512_set1_epi32(static_cast<int>(a[m * kAmxRows + k]));
      const __m512i right = _mm512_load_si512(b + k * kAmxRows), high = _mm512_set1_epi32(static_cast<int>(0xFFFF0000));
      even = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(left, 16)),
                             _mm512_castsi512_ps(_mm512_slli_epi32(right, 16)), even);
      odd = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(left, high)),
                            _mm512_castsi512_ps(_mm512_and_si512(right, high)), odd);
    }
    float* row = c + m * kAmxRows;
    _mm512_store_ps(row, _mm512_add_ps(_mm512_load_ps(row), _mm512_add_ps(even, odd)));
  }
}

// Stand-ins in memory, to test all around the instructions on a processor that has none.
class EmulatedAmxRegisters {
 public:
  explicit EmulatedAmxRegisters(const AmxShape& shape) : shape_(shape) {}

  template <AmxRegister kTo>
  void zero() {
    std::memset(elements_[kTo], 0, sizeof(elements_[kTo]));
  }
  template <AmxRegister kTo>
  void load(const void* from, int64_t stride) {
    copy(elements_[kTo], kAmxRows, from, stride, shape_.rows[kTo]);
  }
  template <AmxRegister kFrom>
  void store(void* to, int64_t stride) {
    copy(to, stride, elements_[kFrom], kAmxRows, shape_.rows[kFrom]);
  }
  template <AmxRegister kC, AmxRegister kA, AmxRegister kB>
  void multiply() {
    constexpr unsigned kControl = 0x9FC0;  // subnormal results and factors are 0; to nearest even; nothing is signalled
    const unsigned before = _mm_getcsr();
    _mm_setcsr(kControl);
    amx_multiply(shape_.rows[kC], reinterpret_cast<float*>(elements_[kC]), elements_[kA], elements_[kB]);
    _mm_setcsr(before);
  }

 private:
  static void copy(void* to, int64_t to_stride, const void* from, int64_t from_stride, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(static_cast<uint32_t*>(to) + i * to_stride, static_cast<const uint32_t*>(from) + i * from_stride, 64);
    }
  }

  AmxShape shape_;
  alignas(64) uint32_t elements_[kAmxRegisters][kAmxElements];
};

// As `Vectors` in gemm.h.
template <typename Registers>
class Amx {
 public:
  using Element = uint32_t;
  static constexpr int64_t kDepth = 512;
  static constexpr int64_t kPacking = 256;  // by the rates of its parts
  static constexpr int64_t kRows = 2 * kAmxRows, kRowUnit = kAmxRows, kPanel = kRows, kCols = 2 * kAmxRows;

  static inline int64_t steps(int64_t depth) { return round_up((depth + 1) / 2, kAmxRows); }

  static void pack_a(const Factor& f, int64_t first, int64_t count, int64_t begin, int64_t depth, uint32_t* target) {
    for (int64_t o = 0; o < count; o += kAmxRows) {
      pack_squares(f, first + o, min(kAmxRows, count - o), begin, depth, kPanel / kAmxRows * kAmxElements,
                   target + o / kAmxRows * kAmxElements);
    }
  }
  static void pack_b(const Factor& f, int64_t first, int64_t count, int64_t begin, int64_t depth, uint32_t* target) {
    pack_pairs<kCols>(f, first, count, begin, depth, target);
    const int64_t written = (depth + 1) / 2;
    std::memset(target + written * kCols, 0, static_cast<std::size_t>((steps(depth) - written) * kCols * 4));
  }

  explicit Amx(int64_t rows) : lower_(rows > kAmxRows), registers_(AmxShape(rows)) {}

  void operator()(int64_t steps, const uint32_t* a, const uint32_t* b, float* c, int64_t ldc, bool accumulate) {
    float* below = c + kAmxRows * ldc;
    if (accumulate) {
      registers_.template load<kC00>(c, ldc);
      registers_.template load<kC01>(c + kAmxRows, ldc);
      if (lower_) registers_.template load<kC10>(below, ldc);
      if (lower_) registers_.template load<kC11>(below + kAmxRows, ldc);
    } else {
      registers_.template zero<kC00>();
      registers_.template zero<kC01>();
      if (lower_) registers_.template zero<kC10>();
      if (lower_) registers_.template zero<kC11>();
    }
    for (int64_t p = 0; p < steps; p += kAmxRows, a += kPanel * kAmxRows, b += kCols * kAmxRows) {
      registers_.template load<kB0>(b, kCols);
      registers_.template load<kB1>(b + kAmxRows, kCols);
      registers_.template load<kA0>(a, kAmxRows);
      registers_.template multiply<kC00, kA0, kB0>();
      registers_.template multiply<kC01, kA0, kB1>();
      if (lower_) {
        registers_.template load<kA1>(a + kAmxElements, kAmxRows);
        registers_.template multiply<kC10, kA1, kB0>();
        registers_.template multiply<kC11, kA1, kB1>();
      }
    }
    registers_.template store<kC00>(c, ldc);
    registers_.template store<kC01>(c + kAmxRows, ldc);
    if (lower_) registers_.template store<kC10>(below, ldc);
    if (lower_) registers_.template store<kC11>(below + kAmxRows, ldc);
  }

 private:
  bool lower_;  // whether there are more rows than one register has
  Registers registers_;
};

}  // namespace EARLYBERT_ISA
}  // namespace earlybert

#endif
