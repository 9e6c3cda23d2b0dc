// Packing for AVX512-BF16 and AMX: numbers are scaled, rounded to bfloat16 and put side by side in pairs of neighbours
// along what is summed, in one pass.
#pragma once

#include <cstdint>

#include "../common/macros.h"
#include "factor.h"
#include "vec.h"

#if defined(__AVX512BF16__)

namespace earlybert {
namespace EARLYBERT_ISA {

// Two registers rounded, the first in the lower half.
static inline __m512i round_two(Vec first, Vec second) {
  return reinterpret_cast<__m512i>(
      _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first)));
}

// The pairs of 2 kVec numbers.
static inline Vec load_pairs(const float* p) { return reinterpret_cast<Vec>(round_two(load(p), load(p + kVec))); }
static inline Vec load_pairs(const uint16_t* p) { return reinterpret_cast<Vec>(_mm512_loadu_si512(p)); }

// `some` numbers of each of two columns, as load_some, the first's in the lower half.
static inline __m512i load_two(const float* first, const float* second, int64_t some) {
  return round_two(load_some(first, some), load_some(second, some));
}
static inline __m512i load_two(const uint16_t* first, const uint16_t* second, int64_t some) {
  const __mmask16 there = first_lanes(some);
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_maskz_loadu_epi16(there, first)),
                            _mm256_maskz_loadu_epi16(there, second), 1);
}

// `some` numbers of a row from `from` on, as load_some, picked and scaled along what is summed.
template <typename Number>
static inline Vec load_inner(const Factor& f, const Number* row, int64_t from, int64_t some) {
  Vec numbers;
  if (f.inner_index == nullptr) {
    numbers = load_some(row + from, some);
  } else {
    float picked[kVec] = {};
    for (int64_t i = 0; i < min(some, kVec); ++i) picked[i] = widen(row[f.inner_index[from + i]]);
    numbers = load(picked);
  }
  return f.inner_scale == nullptr ? numbers : numbers * load_some(f.inner_scale + from, some);
}

// kVec rows of a factor whose rows are contiguous; one that is missing repeats the last.
template <typename Number>
struct Rows {
  const Factor& f;
  const Number* at_row[kVec];
  float scales[kVec];

  Rows(const Factor& factor, const Number* data, int64_t first, int64_t count) : f(factor) {
    for (int i = 0; i < kVec; ++i) {
      const int64_t row = first + min(i, count - 1);
      at_row[i] = data + at(f.outer_index, row) * f.outer;
      scales[i] = f.outer_scale == nullptr ? 1.0f : f.outer_scale[row];
    }
  }
};

// The pairs of 2 kVec numbers of each row from `from` on, zeros for what is behind `left` numbers.
template <typename Number>
EARLYBERT_INLINE void load_rows(const Rows<Number>& rows, int64_t from, int64_t left, Vec* pairs) {
  const Factor& f = rows.f;
  const bool plain = f.inner_index == nullptr && f.inner_scale == nullptr && f.outer_scale == nullptr;
  if (plain && left >= 2 * kVec) {
    EARLYBERT_UNROLL
    for (int i = 0; i < kVec; ++i) pairs[i] = load_pairs(rows.at_row[i] + from);
    return;
  }
  for (int i = 0; i < kVec; ++i) {
    const Vec low = load_inner(f, rows.at_row[i], from, left) * rows.scales[i];
    const Vec high = load_inner(f, rows.at_row[i], from + kVec, left - kVec) * rows.scales[i];
    pairs[i] = reinterpret_cast<Vec>(round_two(low, high));
  }
}

// Of a factor with contiguous rows: pairs of kVec rows are transposed.
template <int64_t kWidth, typename Number>
static void pack_rows(const Factor& f, const Number* data, int64_t first, int64_t count, int64_t begin, int64_t depth,
                      uint32_t* __restrict target) {
  for (int64_t o = 0; o < kWidth; o += kVec) {
    const Rows<Number> rows(f, data, first + min(o, count - 1), max(count - o, 1));
    const __mmask16 there = first_lanes(count - o);
    for (int64_t p = 0; p < depth; p += 2 * kVec) {
      Vec square[kVec];
      load_rows(rows, begin + p, depth - p, square);
      transpose(square);
      for (int64_t i = 0; i < min(kVec, (depth - p + 1) / 2); ++i) {
        _mm512_storeu_si512(target + (p / 2 + i) * kWidth + o,
                            _mm512_maskz_mov_epi32(there, reinterpret_cast<__m512i>(square[i])));
      }
    }
  }
}

// Of any other: pairs are numbers of two neighbouring columns.
template <int64_t kWidth, typename Number>
static void pack_columns(const Factor& f, const Number* data, int64_t first, int64_t count, int64_t begin,
                         int64_t depth, uint32_t* __restrict target) {
  const bool contiguous = f.outer == 1 && f.outer_index == nullptr;
  const bool plain = contiguous && f.inner_scale == nullptr && f.outer_scale == nullptr;
  const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                              6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int64_t p = 0; p < depth; p += 2, target += kWidth) {
    const Number* columns[2];
    float scales[2];
    for (int n = 0; n < 2; ++n) {  // one that is missing repeats the first, and is put to 0 below
      const int64_t column = begin + min(p + n, depth - 1);
      columns[n] = data + at(f.inner_index, column) * f.inner;
      scales[n] = f.inner_scale == nullptr ? 1.0f : f.inner_scale[column];
    }
    for (int64_t o = 0; o < kWidth; o += kVec) {
      const int64_t some = count - o;
      if (plain && p + 1 < depth) {
        const __m512i pairs = load_two(columns[0] + first + o, columns[1] + first + o, some);
        _mm512_storeu_si512(target + o, _mm512_permutexvar_epi16(interleave, pairs));
        continue;
      }
      Vec numbers[2];
      EARLYBERT_UNROLL
      for (int n = 0; n < 2; ++n) {
        if (contiguous) {
          numbers[n] = load_some(columns[n] + first + o, some);
        } else {
          float picked[kVec] = {};
          for (int64_t i = 0; i < min(some, kVec); ++i) {
            picked[i] = widen(columns[n][at(f.outer_index, first + o + i) * f.outer]);
          }
          numbers[n] = load(picked);
        }
        if (f.inner_scale != nullptr) numbers[n] *= scales[n];
        if (f.outer_scale != nullptr) numbers[n] *= load_some(f.outer_scale + first + o, some);
      }
      const __m512i pairs = round_two(numbers[0], p + 1 < depth ? numbers[1] : Vec{});
      _mm512_storeu_si512(target + o, _mm512_permutexvar_epi16(interleave, pairs));
    }
  }
}

// Packs elements (first ... first + count) x (begin ... begin + depth) of a factor: the pair of (o, p) and (o, p + 1),
// p even, goes to target[p / 2 * kWidth + o - first]; what is missing to an even depth, and to kWidth, a multiple of
// kVec, becomes 0.
template <int64_t kWidth>
static void pack_pairs(const Factor& f, int64_t first, int64_t count, int64_t begin, int64_t depth, uint32_t* target) {
  with_numbers(f, [&](const auto* data) {
    if (f.inner == 1) {
      pack_rows<kWidth>(f, data, first, count, begin, depth, target);
    } else {
      pack_columns<kWidth>(f, data, first, count, begin, depth, target);
    }
  });
}

// Packs up to kVec rows as squares `stride` elements apart, each of 2 kVec numbers along what is summed: the pair of
// (first + i, begin + p) and its neighbour goes to target[p / (2 kVec) * stride + i * kVec + p % (2 kVec) / 2]. What is
// missing to a square's depth becomes 0; rows behind `count` are written, but not with anything of use.
static void pack_squares(const Factor& f, int64_t first, int64_t count, int64_t begin, int64_t depth, int64_t stride,
                         uint32_t* target) {
  with_numbers(f, [&](const auto* data) {
    const Rows rows(f, data, first, count);
    for (int64_t p = 0; p < depth; p += 2 * kVec, target += stride) {
      const int64_t left = depth - p;
      Vec square[kVec];
      if (f.inner == 1) {
        load_rows(rows, begin + p, left, square);
      } else {
        pack_columns<kVec>(f, data, first, count, begin + p, min(left, 2 * kVec), target);
        for (int64_t i = 0; i < kVec; ++i) {
          square[i] = 2 * i < left ? reinterpret_cast<Vec>(_mm512_loadu_si512(target + i * kVec)) : Vec{};
        }
        transpose(square);
      }
      for (int64_t i = 0; i < kVec; ++i) {
        _mm512_storeu_si512(target + i * kVec, reinterpret_cast<__m512i>(square[i]));
      }
    }
  });
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert

#endif
