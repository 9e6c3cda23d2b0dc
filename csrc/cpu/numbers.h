// Numbers in memory that are float32, or bfloat16.
#pragma once

#include <cstdint>

namespace earlybert {

// The address that they do not have is null.
struct Numbers {
  float* floats;
  uint16_t* halves;
};

// What matrix products round their factors to, while they pack them, and by what they are multiplied: bfloat16 by
// vector instructions, by AMX's tiles, or by what stands in for those in tests. Sums are float32.
enum class Products { float32, bfloat16, amx, emulated_amx };

}  // namespace earlybert
