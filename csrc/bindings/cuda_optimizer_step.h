#pragma once

#include <pybind11/stl.h>

#include "../cuda/optimizer_step.h"
#include "cuda.h"

namespace earlybert {
namespace optimizer_step_binding {

// A tensor's size, the addresses of parameter, gradient, moments and step (0: the number that follows).
using TensorAt = std::tuple<int64_t, Address, Address, Address, Address, Address, double>;

void step(int device, Address stream, int parameter_dtype, int gradient_dtype, const std::vector<TensorAt>& all,
          Address lr_at, double lr, double beta1, double beta2, double eps, double weight_decay, double l1,
          Address gradient_factor_at, double gradient_factor, bool adapt, Address partials) {
  std::vector<OptimizerTensor> tensors;
  for (const auto& [size, parameter, gradient, exp_avg, exp_avg_sq, step_at, number] : all) {
    tensors.push_back({size, at<void>(parameter), at<void>(gradient), at<float>(exp_avg), at<float>(exp_avg_sq),
                       at<float>(step_at), static_cast<float>(number)});
  }
  optimizer_step({tensors.data(), static_cast<int64_t>(tensors.size()), at<float>(lr_at), lr, beta1, beta2, eps,
                  weight_decay, l1, at<float>(gradient_factor_at), gradient_factor, adapt, at<float>(partials)},
                 {static_cast<Dtype>(parameter_dtype), static_cast<Dtype>(gradient_dtype)}, on(device, stream));
}

}  // namespace optimizer_step_binding

inline void define_optimizer_step(pybind11::module_& m) {
  using namespace optimizer_step_binding;
  m.def("optimizer_step_chunks", &optimizer_step_chunks, "Rows of scratch that a tensor of this size adds.");
  m.def("optimizer_step", &step, release());
}

}  // namespace earlybert
