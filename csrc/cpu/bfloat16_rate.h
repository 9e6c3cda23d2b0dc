// Whether products of bfloat16 are worth their instruction on this processor.
#pragma once

#include "instruction_sets.h"

namespace earlybert {

// Processors differ by a factor of four in how often they can start AVX512-BF16's product: as often as a float32 one
// (AMD Zen 4), which makes it twice as fast, or a quarter as often (1.3 against 5.2 a nanosecond, Intel Emerald
// Rapids), and then rounded numbers are multiplied faster as float32. So it is measured, in some ten microseconds; the
// results of both have the same bits. False where there is no such instruction.
#define EARLYBERT_DECLARE(ISA) \
  namespace ISA {              \
  bool bfloat16_is_fast();     \
  }
EARLYBERT_FOR_EACH_ISA(EARLYBERT_DECLARE)
#undef EARLYBERT_DECLARE

}  // namespace earlybert
