// What a matrix product multiplies: a matrix that lies anyhow, rows and columns of it picked and scaled.
#pragma once

#include <cstdint>

#include "numbers.h"
#include "vec.h"

namespace earlybert {
namespace EARLYBERT_ISA {

// A factor of a product. `outer` runs over the rows of the left or the columns of the right factor, `inner` over what
// is summed; element (o, p) is data[at(outer_index, o) * outer + at(inner_index, p) * inner], where a missing index
// picks o or p itself, times outer_scale[o] and inner_scale[p] where there are such.
struct Factor {
  Numbers data;
  int64_t outer, inner;
  const int64_t* outer_index;
  const int64_t* inner_index;
  const float* outer_scale;
  const float* inner_scale;
};

static inline int64_t at(const int64_t* index, int64_t i) { return index == nullptr ? i : index[i]; }
static inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// work(a pointer to the numbers), of float or uint16_t.
template <typename Work>
static inline void with_numbers(const Factor& f, const Work& work) {
  if (f.data.halves == nullptr) {
    work(f.data.floats);
  } else {
    work(f.data.halves);
  }
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
