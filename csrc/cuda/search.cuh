// Looking up a value in rising numbers.
#pragma once

#include <cstdint>

namespace earlybert {

// The first k with numbers[k] >= value, or `count`.
template <typename T>
__device__ __forceinline__ int64_t lower_bound(const T* numbers, int64_t count, int64_t value) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (numbers[middle] < value) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace earlybert
