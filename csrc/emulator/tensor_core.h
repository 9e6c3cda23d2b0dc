// The tensor cores' instructions, by their definition in the PTX manual.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace emulator {

inline float number(__half x) { return __half2float(x); }
inline float number(__nv_bfloat16 x) { return __bfloat162float(x); }

// Value `i` (0 or 1) of a register that holds two.
template <typename T>
float half_of(uint32_t bits, int i) {
  T pair[2];
  std::memcpy(pair, &bits, sizeof bits);
  return number(pair[i]);
}

// By `abs.f16x2` and `set.geu.u32.f16x2`: all bits of a half of whose values the first is no less, or either is none.
inline uint32_t set_abs_geu_f16x2(uint32_t a, uint32_t b) {
  uint32_t mask = 0;
  for (int i = 0; i < 2; ++i) {
    if (!(half_of<__half>(a & 0x7FFF7FFFu, i) < half_of<__half>(b, i))) mask |= 0xFFFFu << (16 * i);
  }
  return mask;
}

// d += a b, with a row-major 16 x 16 and b column-major 16 x 8, over the lanes of the warp.
template <typename T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Own {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
  } own{d, a, {b0, b1}};
  collective(0xFFFFFFFFu, &own, [](void* const* lanes) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const Own& its = *static_cast<const Own*>(lanes[lane]);
      const int group = lane / 4, in_group = lane % 4;
      for (int i = 0; i < 8; ++i) {
        const int row = group + (i % 4 >= 2 ? 8 : 0), column = in_group * 2 + i % 2 + (i >= 4 ? 8 : 0);
        a[row][column] = half_of<T>(its.a[i / 2], i % 2);
      }
      for (int i = 0; i < 4; ++i) {
        b[in_group * 2 + i % 2 + (i >= 2 ? 8 : 0)][group] = half_of<T>(its.b[i / 2], i % 2);
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      const Own& its = *static_cast<const Own*>(lanes[lane]);
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
        float sum = its.d[i];
        for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
        its.d[i] = sum;
      }
    }
  });
}

// Four 8 x 8 matrices of 2-byte values: lane i gives row i % 8 of matrix i / 8.
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, bool transposed) {
  struct Own {
    uint32_t* r;
    const void* row;
    bool transposed;
  } own{r, row, transposed};
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("a matrix's row is not aligned");
  collective(0xFFFFFFFFu, &own, [](void* const* lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t values[8][8];
      for (int i = 0; i < 8; ++i) {
        std::memcpy(values[i], static_cast<const Own*>(lanes[8 * matrix + i])->row, sizeof values[i]);
      }
      for (int lane = 0; lane < 32; ++lane) {
        const Own& its = *static_cast<const Own*>(lanes[lane]);
        const int i = lane / 4, j = lane % 4 * 2;
        const uint16_t pair[2] = {its.transposed ? values[j][i] : values[i][j],
                                  its.transposed ? values[j + 1][i] : values[i][j + 1]};
        std::memcpy(&its.r[matrix], pair, sizeof pair);
      }
    }
  });
}

}  // namespace emulator
