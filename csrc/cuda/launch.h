// What every launcher needs to know about a call; no CUDA headers, so that the bindings compile without them.
#pragma once

#include <cstdint>

namespace earlybert {

enum class Dtype : int { float32 = 0, float16 = 1, bfloat16 = 2 };

// Where to run: the device's index and one of its streams (a cudaStream_t).
struct Launch {
  int device;
  void* stream;
};

}  // namespace earlybert
