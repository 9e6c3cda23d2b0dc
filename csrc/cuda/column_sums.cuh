// Sums over the rows of matrices of partial results.
#pragma once

#include <cstdint>

#include "launch.cuh"

namespace earlybert {

struct ColumnSums {
  static constexpr int kMost = 3;
  const float* matrices;  // (count, rows, cols)
  int64_t rows, cols;
  int count;              // 1 to kMost
  void* outs[kMost];      // (cols,) each
  Dtype dtypes[kMost];    // of outs
};

// Overwrites each of `outs` by the column sums of its matrix, in float32 and the same in every run. Without rows they
// are 0.
void column_sums(const Call& call, const ColumnSums& sums);

}  // namespace earlybert
