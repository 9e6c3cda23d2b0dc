// The chosen units' parts of many tensors at once, and the way back.
//
// A tensor is (outer, units, inner) contiguous elements: a weight's rows are (1, F, E), its columns (E, F, 1) or, by
// heads, (E, H, D). Gathering makes (outer, count, inner) of (outer, total, inner); scattering a gradient is the
// reverse, 0 for units that were not chosen. With gates, float32 numbers for all units, what is gathered is multiplied
// by its unit's gate, and scattering also gives the gates' gradients: the sums over a unit's elements of the gathered
// tensor's gradient times the tensor. Arithmetic is float32, and results are the same in every run.
//
// Tensors go to the kernel by value, kGatherUnitsMost a launch. Nothing synchronises; both functions throw
// std::runtime_error, naming op and sizes, when sizes are not supported or a launch fails.
#pragma once

#include <cstdint>

#include "launch.h"

namespace earlybert {

constexpr int kGatherUnitsMost = 56;

struct GatherUnits {
  int64_t outer, total, count, inner;  // of the units: all, and the chosen ones
  int64_t element_bytes;               // 1, 2, 4 or 8
  Dtype dtype;                         // of the elements; read with gates only
  const int64_t* units;                // (count,), no unit twice, what is no unit chooses none; null: the first ones
  const float* gates;                  // (total,), or null
  const void* read;                    // gathering (outer, total, inner), scattering (outer, count, inner)
  void* written;                       // gathering (outer, count, inner), scattering (outer, total, inner)
  const void* weight;                  // scattering with gates: (outer, total, inner)
  float* grad_gates;                   // scattering with gates: (total,)
};

void gather_units(const GatherUnits* tensors, int64_t count, Launch);
void scatter_units(const GatherUnits* tensors, int64_t count, Launch);

}  // namespace earlybert
