#pragma once

#include "../cpu/embedding_layer_norm.h"

#include <pybind11/stl.h>

#include <array>
#include <tuple>

#include "cpu.h"

namespace earlybert {
namespace embedding_layer_norm_binding {

// A table (rows, cols) and its rows, int64 ids (tokens,) into it, and in backward its gradient.
using TableAt = std::tuple<Address, int64_t, Address, Address>;

EmbeddingInputs embedding_inputs(int64_t tokens, int64_t cols, const std::array<TableAt, 3>& tables, Address weight,
                                 Address seed, double dropout_p) {
  EmbeddingInputs inputs = {tokens, cols, {}, at<const float>(weight), at<const int64_t>(seed), dropout_p};
  for (std::size_t i = 0; i < tables.size(); ++i) {
    const auto& [table, rows, ids, grad] = tables[i];
    check_indices("embedding_layer_norm: an id", ids, tokens, rows);
    inputs.tables[i] = {at<const float>(table), at<const int64_t>(ids), at<float>(grad)};
  }
  return inputs;
}

void forward(int64_t tokens, int64_t cols, const std::array<TableAt, 3>& tables, Address weight, Address seed,
             double dropout_p, Address bias, double eps, Address out, Address mean, Address rstd) {
  const EmbeddingLayerNormForward arguments = {embedding_inputs(tokens, cols, tables, weight, seed, dropout_p),
                                               at<const float>(bias),
                                               eps,
                                               at<float>(out),
                                               at<float>(mean),
                                               at<float>(rstd)};
  EARLYBERT_CALL(embedding_layer_norm_forward, arguments);
}

void backward(int64_t tokens, int64_t cols, const std::array<TableAt, 3>& tables, Address weight, Address seed,
              double dropout_p, Address grad_out, Address mean, Address rstd, int64_t padding_id, Address grad_weight,
              Address grad_bias) {
  const std::unique_ptr<float[]> partials = layer_norm_partials(tokens, cols);
  const std::unique_ptr<float[]> scratch(new float[static_cast<std::size_t>(tokens * 2 * cols)]);
  const EmbeddingLayerNormBackward arguments = {embedding_inputs(tokens, cols, tables, weight, seed, dropout_p),
                                                at<const float>(grad_out),
                                                at<const float>(mean),
                                                at<const float>(rstd),
                                                padding_id,
                                                at<float>(grad_weight),
                                                at<float>(grad_bias),
                                                partials.get(),
                                                scratch.get()};
  EARLYBERT_CALL(embedding_layer_norm_backward, arguments);
}

}  // namespace embedding_layer_norm_binding

inline void define_embedding_layer_norm(pybind11::module_& m) {
  using namespace embedding_layer_norm_binding;
  m.def("embedding_layer_norm_forward", &forward, release());
  m.def("embedding_layer_norm_backward", &backward, release());
}

}  // namespace earlybert
