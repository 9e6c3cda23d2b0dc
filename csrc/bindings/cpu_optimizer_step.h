#pragma once

#include "../cpu/optimizer_step.h"

#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "cpu.h"

namespace earlybert {
namespace optimizer_step_binding {

// A tensor's size, the addresses of parameter, gradient and moments, and the scales of the moments.
using TensorAt = std::tuple<int64_t, Address, Address, Address, Address, double, double>;

void step(const std::vector<TensorAt>& all, double lr, double beta1, double beta2, double eps, double weight_decay,
          bool adapt, double l1, double gradient_factor) {
  std::vector<OptimizerTensor> tensors;
  for (const auto& [size, parameter, gradient, exp_avg, exp_avg_sq, scale, sqrt_scale] : all) {
    tensors.push_back({size, at<float>(parameter), at<const float>(gradient), at<float>(exp_avg), at<float>(exp_avg_sq),
                       static_cast<float>(scale), static_cast<float>(sqrt_scale)});
  }
  const auto narrow = [](double x) { return static_cast<float>(x); };
  const OptimizerStep arguments = {tensors.data(),       static_cast<int64_t>(tensors.size()),
                                   narrow(lr),           narrow(beta1),
                                   narrow(1.0 - beta1),  narrow(beta2),
                                   narrow(1.0 - beta2),  narrow(eps),
                                   narrow(weight_decay), adapt,
                                   narrow(l1),           narrow(gradient_factor)};
  check(EARLYBERT_CALL(optimizer_step, arguments));
}

}  // namespace optimizer_step_binding

inline void define_optimizer_step(pybind11::module_& m) {
  using namespace optimizer_step_binding;
  m.def("optimizer_step", &step, release());
}

}  // namespace earlybert
