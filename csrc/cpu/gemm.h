// Matrix products at the width of a transformer's linear layers: c = a b, blocked for the caches, both factors
// packed. Rows and columns can be picked by index and scaled while they are packed, which makes a masked or a gated
// layer cost what a compact one does. What is multiplied is float32, or rounded to bfloat16 while it is packed; sums
// are float32. A micro-kernel multiplies what is packed: `Vectors` below, or that of amx.h. How c is cut into tasks
// depends on the number of threads, but the order in which each element is summed does not.
#pragma once

#include <cstdint>
#include <cstdlib>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "../common/macros.h"
#include "amx.h"
#include "factor.h"
#include "pairs.h"
#include "split.h"
#include "vec.h"

namespace earlybert {
namespace EARLYBERT_ISA {

#if defined(__AVX512F__)
constexpr int kTileRows = 14;  // 28 of the 32 registers accumulate
#else
constexpr int kTileRows = 6;  // 12 of 16
#endif
constexpr int kTileCols = 2 * kVec;
constexpr int kRowPanel = (kTileRows + kVec - 1) / kVec * kVec;  // elements of a packed column of a's tile

constexpr int kAhead = 8;  // steps of a tile that b, which is in the second cache, is asked for beforehand

constexpr int64_t kBlockElements = 384 * 512;  // of b packed at a time: they fit the second cache

// Below this many multiplications waking the other threads costs more than they save.
constexpr int64_t kParallelProducts = 1 << 18;

static inline int64_t max_threads() {
#if defined(_OPENMP)
  return omp_get_max_threads();
#else
  return 1;
#endif
}

// Packs elements (first ... first + count) x (begin ... begin + depth) of a factor: element (o, p) goes to
// target[p * kWidth + o - first]; what is missing to kWidth, a multiple of kVec, becomes 0.
template <int64_t kWidth, typename Number>
static void pack(const Factor& f, const Number* data, int64_t first, int64_t count, int64_t begin, int64_t depth,
                 float* __restrict target) {
  if (f.inner == 1 && f.inner_index == nullptr) {
    for (int64_t o = 0; o < kWidth; o += kVec) {
      const Number* rows[kVec];
      for (int i = 0; i < kVec; ++i) {  // a row that is missing repeats the last and is overwritten below
        rows[i] = data + at(f.outer_index, first + min(o + i, count - 1)) * f.outer + begin;
      }
      int64_t p = 0;
      for (; p + kVec <= depth; p += kVec) {
        Vec square[kVec];
        for (int i = 0; i < kVec; ++i) square[i] = load(rows[i] + p);
        transpose(square);
        for (int i = 0; i < kVec; ++i) store(target + (p + i) * kWidth + o, square[i]);
      }
      for (; p < depth; ++p) {
        for (int i = 0; i < kVec; ++i) target[p * kWidth + o + i] = widen(rows[i][p]);
      }
    }
    if (count < kWidth) {
      for (int64_t p = 0; p < depth; ++p) {
        for (int64_t o = count; o < kWidth; ++o) target[p * kWidth + o] = 0.0f;
      }
    }
  } else {
    for (int64_t p = 0; p < depth; ++p) {
      const Number* source = data + at(f.inner_index, begin + p) * f.inner;
      float* row = target + p * kWidth;
      if (f.outer == 1 && f.outer_index == nullptr) {
        for (int64_t o = 0; o < kWidth; o += kVec) store(row + o, load_some(source + first + o, count - o));
      } else {
        for (int64_t o = 0; o < count; ++o) row[o] = widen(source[at(f.outer_index, first + o) * f.outer]);
        for (int64_t o = count; o < kWidth; ++o) row[o] = 0.0f;
      }
    }
  }
  if (f.inner_scale != nullptr) {
    for (int64_t p = 0; p < depth; ++p) {
      for (int64_t o = 0; o < kWidth; ++o) target[p * kWidth + o] *= f.inner_scale[begin + p];
    }
  }
  if (f.outer_scale != nullptr) {
    for (int64_t p = 0; p < depth; ++p) {
      for (int64_t o = 0; o < count; ++o) target[p * kWidth + o] *= f.outer_scale[first + o];
    }
  }
}

template <int64_t kWidth>
static void pack(const Factor& f, int64_t first, int64_t count, int64_t begin, int64_t depth, float* target) {
  with_numbers(f, [&](const auto* data) { pack<kWidth>(f, data, first, count, begin, depth, target); });
}

// The formats of packed factors: what an element of 32 bits holds, and how elements are packed, loaded and multiplied.
struct Float32 {
  using Element = float;
  static constexpr int64_t kDepth = 512;   // numbers summed at a time: a tile of a is then in the nearest cache
  static constexpr int64_t kPacking = 16;  // multiplications in the time of packing a number

  static inline int64_t steps(int64_t depth) { return depth; }  // elements of so many numbers along what is summed
  static inline Vec load(const float* p) { return EARLYBERT_ISA::load(p); }
  static inline Vec splat(float x) { return EARLYBERT_ISA::splat(x); }
  static inline Vec add(Vec sums, Vec a, Vec b) { return sums + a * b; }

  template <int64_t kWidth>
  static void pack(const Factor& f, int64_t first, int64_t count, int64_t begin, int64_t depth, float* target) {
    EARLYBERT_ISA::pack<kWidth>(f, first, count, begin, depth, target);
  }
};

// Rounds what is packed to bfloat16, and sums as AVX512-BF16's instruction: of two neighbours the second comes first.
// With that instruction an element is a pair, elsewhere a float32, and every sum has the same bits, since a product of
// two bfloat16 is exact in float32. (Those below 1e-38 are not; the instruction takes them for 0.)
struct BFloat16 : Float32 {
  static constexpr int64_t kDepth = 1024;  // in every form, so that sums have the same order
  static constexpr int64_t kPacking = 32;
#if defined(__AVX512BF16__)
  using Element = uint32_t;

  static inline int64_t steps(int64_t depth) { return (depth + 1) / 2; }
  static inline __m512i load(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static inline __m512i splat(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static inline Vec add(Vec sums, __m512i a, __m512i b) {
    return reinterpret_cast<Vec>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(sums), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
  }
#endif

  template <int64_t kWidth>
  static void pack(const Factor& f, int64_t first, int64_t count, int64_t begin, int64_t depth,
                   Element* __restrict target) {
#if defined(__AVX512BF16__)
    pack_pairs<kWidth>(f, first, count, begin, depth, target);
#else
    static_assert(kTileCols >= kRowPanel, "the wider panel has to fit");
    constexpr int64_t kPart = 64;  // stays in the nearest cache
    alignas(64) float floats[kPart * kTileCols];
    for (int64_t done = 0; done < depth; done += kPart) {
      const int64_t part = min(kPart, depth - done);
      EARLYBERT_ISA::pack<kWidth>(f, first, count, begin + done, part, floats);
      for (int64_t p = 0; p < part; p += 2) {
        const bool pair = p + 1 < part;
        for (int64_t o = 0; o < kWidth; o += kVec) {
          const float* at = floats + p * kWidth + o;
          const Vec low = to_bfloat16(EARLYBERT_ISA::load(at));
          store(target + o, pair ? to_bfloat16(EARLYBERT_ISA::load(at + kWidth)) : low);
          if (pair) store(target + kWidth + o, low);
        }
        target += pair ? 2 * kWidth : kWidth;
      }
    }
#endif
  }
};

// One tile: c (kRows x kTileCols) = or += a b, from panels of kRowPanel and kTileCols elements.
template <typename Format, int kRows>
static void tile_rows(int64_t steps, const typename Format::Element* a, const typename Format::Element* b, float* c,
                      int64_t ldc, bool accumulate) {
  constexpr int kCols = kTileCols / kVec;
  Vec sums[kRows][kCols];
  EARLYBERT_UNROLL
  for (int i = 0; i < kRows; ++i) {
    EARLYBERT_UNROLL
    for (int j = 0; j < kCols; ++j) {
      sums[i][j] = Vec{};
      __builtin_prefetch(c + i * ldc + j * kVec, 1);
    }
  }
  for (int64_t p = 0; p < steps; ++p, a += kRowPanel, b += kTileCols) {
    decltype(Format::load(b)) right[kCols];
    EARLYBERT_UNROLL
    for (int j = 0; j < kCols; ++j) {
      right[j] = Format::load(b + j * kVec);
      __builtin_prefetch(b + kAhead * kTileCols + j * kVec);  // of the next panel at the end
    }
    EARLYBERT_UNROLL
    for (int i = 0; i < kRows; ++i) {
      const auto left = Format::splat(a[i]);
      EARLYBERT_UNROLL
      for (int j = 0; j < kCols; ++j) sums[i][j] = Format::add(sums[i][j], left, right[j]);
    }
  }
  EARLYBERT_UNROLL
  for (int i = 0; i < kRows; ++i) {
    EARLYBERT_UNROLL
    for (int j = 0; j < kCols; ++j) {
      float* out = c + i * ldc + j * kVec;
      store(out, accumulate ? load(out) + sums[i][j] : sums[i][j]);
    }
  }
}

// The micro-kernel of vector registers: panels are packed as a format has it, and tiles of c multiplied, of so many
// rows each.
template <typename Format>
class Vectors {
 public:
  using Element = typename Format::Element;
  static constexpr int64_t kDepth = Format::kDepth, kPacking = Format::kPacking;
  static constexpr int64_t kRows = kTileRows;  // of a tile, at most
  static constexpr int64_t kRowUnit = 1;       // rows of all tiles but the last are a multiple of it
  static constexpr int64_t kCols = kTileCols, kPanel = kRowPanel;

  static inline int64_t steps(int64_t depth) { return Format::steps(depth); }

  // A panel of a, kPanel * steps(depth) elements, and one of b, kTileCols * steps(depth).
  static void pack_a(const Factor& f, int64_t first, int64_t count, int64_t begin, int64_t depth, Element* target) {
    Format::template pack<kRowPanel>(f, first, count, begin, depth, target);
  }
  static void pack_b(const Factor& f, int64_t first, int64_t count, int64_t begin, int64_t depth, Element* target) {
    Format::template pack<kTileCols>(f, first, count, begin, depth, target);
  }

  explicit Vectors(int64_t rows) : run_(tile_of<kTileRows>(rows)) {}

  // c = or += a b, from one panel of each.
  void operator()(int64_t steps, const Element* a, const Element* b, float* c, int64_t ldc, bool accumulate) const {
    run_(steps, a, b, c, ldc, accumulate);
  }

 private:
  using Run = void (*)(int64_t, const Element*, const Element*, float*, int64_t, bool);

  // Most tiles of a product have kTileRows rows or one less, since rows are spread evenly; only small ones have fewer.
  template <int kCount>
  static Run tile_of(int64_t rows) {
    if constexpr (kCount > 1) {
      return rows < kCount ? tile_of<kCount - 1>(rows) : tile_rows<Format, kCount>;
    } else {
      return tile_rows<Format, 1>;
    }
  }

  Run run_;
};

// The first row of a tile, of so many: rows are spread evenly.
template <typename Kernel>
static inline int64_t first_row(int64_t tile, int64_t tiles, int64_t rows) {
  return min(rows, round_up(tile * rows / tiles, Kernel::kRowUnit));
}

// Where a product goes: row i at data + at(row_index, i) * ld. Without an address its epilogue puts it somewhere.
struct Product {
  float* data;
  int64_t ld;
  const int64_t* row_index;
};

struct NoEpilogue {
  void operator()(float*, int64_t, int64_t, int64_t) const {}
};

// As many panels as the second cache holds, of so many elements along what is summed.
static inline int64_t most_panels(int64_t steps) { return max(kBlockElements / steps / kTileCols, 1); }

// c (rows x cols) = a (rows x depth) b (depth x cols), added to c when `accumulate`. When an element is complete,
// epilogue(pointer, row, column, count) is called with the run of a row that it is in, which is at most kTileCols
// long and lies in the nearest cache. Returns false when memory for the panels could not be had. A product that has no
// place of its own is summed in one go, which is meant for depths of a model's hidden size.
template <typename Kernel, typename Epilogue>
static bool gemm(int64_t rows, int64_t cols, int64_t depth, const Factor& a, const Factor& b, const Product& c,
                 bool accumulate, const Epilogue& epilogue) {
  if (rows == 0 || cols == 0) return true;
  const int64_t threads = rows * cols * depth < kParallelProducts ? 1 : max_threads();
  const int64_t most_depth = c.data == nullptr ? max(depth, 1) : Kernel::kDepth;
  const int64_t most_steps = Kernel::steps(most_depth);
  const Split split = split_of<Kernel>(rows, cols, most_panels(most_steps), threads);
  bool enough = true;

#pragma omp parallel num_threads(static_cast<int>(min(threads, split.tasks()))) if (threads > 1)
  {
    using Element = typename Kernel::Element;
    const int64_t a_elements = round_up(most_steps * Kernel::kPanel, 16);
    const int64_t elements = a_elements + round_up(split.block_panels * kTileCols * most_steps, 16);
    Element* memory =
        static_cast<Element*>(std::aligned_alloc(64, static_cast<std::size_t>(elements) * sizeof(Element)));
    Element* b_panels = memory + a_elements;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < split.tasks(); ++task) {
      if (memory == nullptr) {
#pragma omp atomic write
        enough = false;
        continue;
      }
      const Task own(split, task);
      const int64_t first_col = own.first_panel * kTileCols, end_col = min(cols, own.end_panel * kTileCols);
      int64_t begin = 0;
      do {  // once even when there is nothing to sum
        const int64_t part = min(most_depth, depth - begin);
        const int64_t steps = Kernel::steps(part);
        const bool first_part = begin == 0, last_part = begin + part == depth;
        for (int64_t j = first_col; j < end_col; j += kTileCols) {
          Kernel::pack_b(b, j, min(kTileCols, cols - j), begin, part, b_panels + (j - first_col) * steps);
        }
        for (int64_t t = own.first_tile; t < own.end_tile; ++t) {
          const int64_t row = first_row<Kernel>(t, split.tiles, rows);
          const int64_t count = first_row<Kernel>(t + 1, split.tiles, rows) - row;
          Kernel::pack_a(a, row, count, begin, part, memory);
          Kernel run(count);
          for (int64_t j = first_col; j < end_col; j += kTileCols) {
            const Element* panel = b_panels + (j - first_col) * steps;
            const int64_t width = min(kTileCols, cols - j);
            const bool add = accumulate || !first_part;
            if (width == kTileCols && c.row_index == nullptr && c.data != nullptr) {
              run(steps, memory, panel, c.data + row * c.ld + j, c.ld, add);
            } else {
              alignas(64) float edge[Kernel::kRows * kTileCols];
              run(steps, memory, panel, edge, kTileCols, false);
              for (int64_t i = 0; i < count; ++i) {
                if (c.data == nullptr) {
                  epilogue(edge + i * kTileCols, row + i, j, width);
                  continue;
                }
                float* out = c.data + at(c.row_index, row + i) * c.ld + j;
                for (int64_t n = 0; n < width; ++n) {
                  out[n] = add ? out[n] + edge[i * kTileCols + n] : edge[i * kTileCols + n];
                }
              }
            }
            if (last_part && c.data != nullptr) {
              for (int64_t i = 0; i < count; ++i) {
                epilogue(c.data + at(c.row_index, row + i) * c.ld + j, row + i, j, width);
              }
            }
          }
        }
        begin += part;
      } while (begin < depth);
    }
    std::free(memory);
  }
  return enough;
}

#if defined(__AVX512BF16__)
static_assert(Amx<AmxRegisters>::kCols == kTileCols, "panels of columns are as wide for every micro-kernel");
#endif

template <typename T>
struct Type {
  using type = T;
};

// work(Type<Kernel>) with the micro-kernel that multiplies in this way.
template <typename Work>
static bool with_kernel(Products products, const Work& work) {
  switch (products) {
    case Products::float32: return work(Type<Vectors<Float32>>{});
#if defined(__AVX512BF16__)
    case Products::amx: return work(Type<Amx<AmxRegisters>>{});
    case Products::emulated_amx: return work(Type<Amx<EmulatedAmxRegisters>>{});
#endif
    default: return work(Type<Vectors<BFloat16>>{});
  }
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
