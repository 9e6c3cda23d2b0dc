// How far two masks are apart: the share of kept units that only one of them keeps, |a xor b| / (|a| + |b|), 0 where
// both are empty. Nothing synchronises; errors are thrown as std::runtime_error that names op and sizes.
#pragma once

#include <cstdint>

#include "launch.h"

namespace earlybert {

struct TicketDistance {
  int64_t units;
  const uint8_t *a, *b;  // (units,), each 0 or 1
  double* distance;      // one number
};

void ticket_distance(const TicketDistance&, Launch);

}  // namespace earlybert
