// Whether products of bfloat16 are worth their instruction on this processor.
#pragma once

#include "instruction_sets.h"

namespace earlybert {

// AVX512-BF16's product does the work of two float32 ones. An Intel Emerald Rapids starts it a quarter as often (1.3
// against 5.2 a nanosecond), so that rounded numbers are multiplied faster as float32; where it starts as often it is
// twice as fast. So both are timed, 240,000 of each; their results have the same bits. False where there is no such
// instruction.
#define EARLYBERT_DECLARE(ISA) \
  namespace ISA {              \
  bool bfloat16_is_fast();     \
  }
EARLYBERT_FOR_EACH_ISA(EARLYBERT_DECLARE)
#undef EARLYBERT_DECLARE

}  // namespace earlybert
