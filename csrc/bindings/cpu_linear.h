#pragma once

#include "../cpu/linear.h"

#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "cpu.h"

namespace earlybert {
namespace linear_binding {

// sizes: tokens, in, out; the rows of x and their stride; those of the weight, and its columns. picks: x_rows,
// out_units, in_units, in_scale. bfloat16: of the products.
using LinearSizes = std::array<int64_t, 8>;

LinearInputs linear_inputs(const LinearSizes& sizes, const NumbersAt& x, Address weight,
                           const std::array<Address, 4>& picks, bool bfloat16) {
  const auto& [tokens, in, out, x_rows, x_stride, weight_rows, weight_stride, weight_columns] = sizes;
  check_indices("row of x", picks[0], tokens, x_rows);
  check_indices("kept unit", picks[1], out, weight_rows, true);
  check_indices("kept unit", picks[2], in, weight_columns, true);
  return {tokens,
          in,
          out,
          numbers(x),
          x_stride,
          at<const int64_t>(picks[0]),
          at<float>(weight),
          weight_rows,
          weight_stride,
          weight_columns,
          at<const int64_t>(picks[1]),
          at<const int64_t>(picks[2]),
          at<const float>(picks[3]),
          products(bfloat16)};
}

void forward(const LinearSizes& sizes, const NumbersAt& x, Address weight, const std::array<Address, 4>& picks,
             bool bfloat16, Address bias, int activation, const NumbersAt& preactivation, const NumbersAt& y,
             int64_t y_stride) {
  const LinearForward arguments = {linear_inputs(sizes, x, weight, picks, bfloat16),
                                   at<const float>(bias),
                                   static_cast<Activation>(activation),
                                   numbers(preactivation),
                                   numbers(y),
                                   y_stride};
  check(EARLYBERT_CALL(linear_forward, arguments));
}

void backward(const LinearSizes& sizes, const NumbersAt& x, Address weight, const std::array<Address, 4>& picks,
              bool bfloat16, const NumbersAt& grad_y, int64_t grad_y_stride, const NumbersAt& grad_x,
              int64_t grad_x_stride, bool accumulate, int activation, const NumbersAt& preactivation,
              Address grad_weight, Address grad_bias, Address grad_in_scale) {
  const LinearBackward arguments = {linear_inputs(sizes, x, weight, picks, bfloat16),
                                    numbers(grad_y),
                                    grad_y_stride,
                                    numbers(grad_x),
                                    grad_x_stride,
                                    accumulate,
                                    static_cast<Activation>(activation),
                                    numbers(preactivation),
                                    at<float>(grad_weight),
                                    at<float>(grad_bias),
                                    at<float>(grad_in_scale)};
  check(EARLYBERT_CALL(linear_backward, arguments));
}

std::vector<std::array<int64_t, 4>> tasks(int64_t rows, int64_t cols, int64_t threads, bool bfloat16) {
  std::vector<std::array<int64_t, 4>> all;
  std::array<int64_t, 4> part;
  const auto next = [&] { return static_cast<int64_t>(all.size()); };
  while (EARLYBERT_CALL(linear_task, products(bfloat16), rows, cols, threads, next(), part.data())) all.push_back(part);
  return all;
}

}  // namespace linear_binding

inline void define_linear(pybind11::module_& m) {
  using namespace linear_binding;
  m.def("linear_forward", &forward, release());
  m.def("linear_backward", &backward, release());
  m.def("linear_tasks", &tasks, "How a product is divided among threads: rows from and to, columns from and to.");
}

}  // namespace earlybert
