// out[r] = the sum of the rows values[order[k]] with keys[k] == r, in the order of k: a scatter that adds, turned round
// so that whoever owns a row of the result writes it once, zeros included, and every run adds alike.
#pragma once

#include <cstdint>

#include "launch.h"

namespace earlybert {

struct SumByKey {
  int64_t count, cols, rows;
  const int32_t* keys;  // (count,), rising; those of `rows` and more belong to no row
  const int64_t* order;  // (count,)
  const void* values;  // (count, cols)
  void* out;  // (rows, cols), of the values' dtype or float32
};

// Sums are float32. Throws std::runtime_error, naming op and sizes.
void sum_by_key(const SumByKey& problem, Dtype values, Dtype out, Launch launch);

}  // namespace earlybert
