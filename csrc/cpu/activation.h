// What csrc/common/activation.h computes with on the CPU.
#pragma once

#include "../common/activation.h"
#include "vec.h"

namespace earlybert {
namespace EARLYBERT_ISA {

// One vector register.
struct VecMath {
  using V = Vec;

  static inline Vec magnitude(Vec x) { return max(x, -x); }
  static inline Vec exp_negative(Vec x) { return EARLYBERT_ISA::exp_negative(x); }
  static inline Vec inverse(Vec x) { return 1.0f / x; }
};

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
