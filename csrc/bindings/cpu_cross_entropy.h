#pragma once

#include "../cpu/cross_entropy.h"

#include "cpu.h"

namespace earlybert {
namespace cross_entropy_binding {

void cross_entropy(int64_t rows, int64_t cols, Address logits, Address labels, double scale, Address losses) {
  check_indices("masked_lm_loss: a label", labels, rows, cols);
  const CrossEntropy arguments = {
      rows, cols, at<float>(logits), at<const int64_t>(labels), static_cast<float>(scale), at<float>(losses)};
  EARLYBERT_CALL(cross_entropy, arguments);
}

}  // namespace cross_entropy_binding

inline void define_cross_entropy(pybind11::module_& m) {
  using namespace cross_entropy_binding;
  m.def("cross_entropy", &cross_entropy, release());
}

}  // namespace earlybert
