#pragma once

#include "../cuda/dropout_add_layer_norm.h"

#include "cuda.h"

namespace earlybert {
namespace dropout_add_layer_norm_binding {

DropoutAddLayerNormDtypes dtypes(int x, int residual, int weight) {
  return {static_cast<Dtype>(x), static_cast<Dtype>(residual), static_cast<Dtype>(weight)};
}

void forward(int device, Address stream, int x_dtype, int residual_dtype, int weight_dtype, int64_t rows, int64_t cols,
             Address x, Address residual, Address weight, Address bias, Address seed, double dropout_p, double eps,
             Address out, Address out_cast, Address mean, Address rstd) {
  dropout_add_layer_norm_forward(
      {rows, cols, at<void>(x), at<void>(residual), at<void>(weight), at<void>(bias), at<int64_t>(seed), dropout_p, eps,
       at<void>(out), at<void>(out_cast), at<float>(mean), at<float>(rstd)},
      dtypes(x_dtype, residual_dtype, weight_dtype), on(device, stream));
}

void backward(int device, Address stream, int x_dtype, int residual_dtype, int weight_dtype, int64_t rows, int64_t cols,
              Address grad_out, Address x, Address residual, Address weight, Address mean, Address rstd, Address seed,
              double dropout_p, Address grad_x, Address grad_residual, Address residual_cast, Address grad_weight,
              Address grad_bias, Address grad_x_columns, Address partials) {
  dropout_add_layer_norm_backward({rows, cols, at<void>(grad_out), at<void>(x), at<void>(residual), at<void>(weight),
                                   at<float>(mean), at<float>(rstd), at<int64_t>(seed), dropout_p, at<void>(grad_x),
                                   at<void>(grad_residual), at<void>(residual_cast), at<void>(grad_weight),
                                   at<void>(grad_bias), at<void>(grad_x_columns), at<float>(partials)},
                                  dtypes(x_dtype, residual_dtype, weight_dtype), on(device, stream));
}

}  // namespace dropout_add_layer_norm_binding

inline void define_dropout_add_layer_norm(pybind11::module_& m) {
  using namespace dropout_add_layer_norm_binding;
  m.def("dropout_add_layer_norm_forward", &forward, release());
  m.def("dropout_add_layer_norm_backward", &backward, release());
}

}  // namespace earlybert
