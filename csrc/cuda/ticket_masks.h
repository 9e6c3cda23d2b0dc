// Which units a ticket keeps: those with the largest |score|, of all layers at once (EarlyBERT, arXiv 2101.00063,
// section 3.2). Of equal scores the unit of the lower layer, then of the lower index, comes first; NaN comes before all
// numbers. Nothing synchronises; errors are thrown as std::runtime_error that names op and sizes.
#pragma once

#include <cstdint>

#include "launch.h"

namespace earlybert {

constexpr int kTicketMaxLayers = 64;

struct TicketLayer {
  const float* scores;  // (units,)
  int64_t units;  // 1 or more
  int64_t keep;  // how many stay, 1 to `units`; read where `keep_in_all` is 0
};

struct TicketMasks {
  const TicketLayer* layers;  // in host memory, read before the call returns
  int64_t count;  // 1 to kTicketMaxLayers
  // Or how many stay in all layers, the best of each layer among them: `count` to the number of units. A layer's width
  // is then made a multiple of `multiple_of`, as the op's reference does it.
  int64_t keep_in_all, multiple_of;
  int* widths;  // scratch with keep_in_all, else null: (count,)
  uint8_t* mask;  // (units of all layers,): 1 where a unit stays, else 0
};

void ticket_masks(const TicketMasks&, Launch);

}  // namespace earlybert
