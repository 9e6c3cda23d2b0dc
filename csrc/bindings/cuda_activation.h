#pragma once

#include "../cuda/activation.h"

#include "cuda.h"

namespace earlybert {
namespace activation_binding {

void forward(int device, Address stream, int dtype, int activation, int64_t rows, int64_t cols, Address y,
             Address gates, Address h) {
  activation_forward({rows, cols, at<void>(y), at<float>(gates), at<void>(h)}, static_cast<Activation>(activation),
                     static_cast<Dtype>(dtype), on(device, stream));
}

void backward(int device, Address stream, int dtype, int activation, int64_t rows, int64_t cols, Address grad,
              Address y, Address gates, Address h, Address grad_bias, Address grad_gates, Address partials) {
  activation_backward({rows, cols, at<void>(grad), at<void>(y), at<float>(gates), at<void>(h), at<void>(grad_bias),
                       at<float>(grad_gates), at<float>(partials)},
                      static_cast<Activation>(activation), static_cast<Dtype>(dtype), on(device, stream));
}

}  // namespace activation_binding

inline void define_activation(pybind11::module_& m) {
  using namespace activation_binding;
  m.def("activation_partials", &activation_partials, "Rows of backward's scratch.");
  m.def("activation_forward", &forward, release());
  m.def("activation_backward", &backward, release());
}

}  // namespace earlybert
