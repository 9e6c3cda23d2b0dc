// What callers of the ops with a layer norm need to know of it.
#pragma once

#include <cstdint>

namespace earlybert {

constexpr int64_t kLayerNormMaxCols = 8192;

// How many rows of partial sums a backward kernel writes for each of its vectors of sums.
int64_t layer_norm_partials(int64_t rows, int64_t cols);

}  // namespace earlybert
