#pragma once

#include "../cpu/dropout_add_layer_norm.h"

#include "cpu.h"

namespace earlybert {
namespace dropout_add_layer_norm_binding {

void forward(int64_t rows, int64_t cols, Address x, Address residual, Address weight, Address bias, Address seed,
             double dropout_p, double eps, Address out, Address mean, Address rstd) {
  const DropoutAddLayerNormForward arguments = {rows,
                                                cols,
                                                at<const float>(x),
                                                at<const float>(residual),
                                                at<const float>(weight),
                                                at<const float>(bias),
                                                at<const int64_t>(seed),
                                                dropout_p,
                                                eps,
                                                at<float>(out),
                                                at<float>(mean),
                                                at<float>(rstd)};
  EARLYBERT_CALL(dropout_add_layer_norm_forward, arguments);
}

void backward(int64_t rows, int64_t cols, Address grad_out, Address x, Address residual, Address weight, Address mean,
              Address rstd, Address seed, double dropout_p, Address grad_x, Address grad_residual, Address grad_weight,
              Address grad_bias) {
  const std::unique_ptr<float[]> partials = layer_norm_partials(rows, cols);
  const DropoutAddLayerNormBackward arguments = {rows,
                                                 cols,
                                                 at<const float>(grad_out),
                                                 at<const float>(x),
                                                 at<const float>(residual),
                                                 at<const float>(weight),
                                                 at<const float>(mean),
                                                 at<const float>(rstd),
                                                 at<const int64_t>(seed),
                                                 dropout_p,
                                                 at<float>(grad_x),
                                                 at<float>(grad_residual),
                                                 at<float>(grad_weight),
                                                 at<float>(grad_bias),
                                                 partials.get()};
  EARLYBERT_CALL(dropout_add_layer_norm_backward, arguments);
}

}  // namespace dropout_add_layer_norm_binding

inline void define_dropout_add_layer_norm(pybind11::module_& m) {
  using namespace dropout_add_layer_norm_binding;
  m.def("dropout_add_layer_norm_forward", &forward, release());
  m.def("dropout_add_layer_norm_backward", &backward, release());
}

}  // namespace earlybert
