// Numbers in memory that are float32, or bfloat16.
#pragma once

#include <cstdint>

namespace earlybert {

// The address that they do not have is null.
struct Numbers {
  float* floats;
  uint16_t* halves;
};

}  // namespace earlybert
