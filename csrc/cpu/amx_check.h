// Whether AMX multiplies as amx.h has it.
#pragma once

#include "instruction_sets.h"

namespace earlybert {

// Multiplies whole numbers, whose sums are exact in any order, with AMX's registers or with what stands in for them,
// and compares. A processor whose products are other ones than were tested is left without. False where there is no
// AVX512-BF16.
#define EARLYBERT_DECLARE(ISA)        \
  namespace ISA {                     \
  bool amx_multiplies(bool emulated); \
  }
EARLYBERT_FOR_EACH_ISA(EARLYBERT_DECLARE)
#undef EARLYBERT_DECLARE

}  // namespace earlybert
