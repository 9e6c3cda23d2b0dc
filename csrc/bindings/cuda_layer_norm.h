#pragma once

#include "../cuda/layer_norm.h"

#include "cuda.h"

namespace earlybert {

inline void define_layer_norm(pybind11::module_& m) {
  m.attr("LAYER_NORM_MAX_COLS") = kLayerNormMaxCols;
  m.def("layer_norm_partials", &layer_norm_partials, "Rows of each matrix of partial sums.");
}

}  // namespace earlybert
