#pragma once

#include "../cuda/embedding_layer_norm.h"

#include <pybind11/stl.h>

#include <tuple>

#include "../cuda/sum_by_key.h"
#include "cuda.h"

namespace earlybert {
namespace embedding_layer_norm_binding {

using TableTuple = std::tuple<Address, int64_t, Address>;  // the fields of EmbeddingTable
using TableTuples = std::tuple<TableTuple, TableTuple, TableTuple>;

EmbeddingTable table(const TableTuple& t) {
  return {at<void>(std::get<0>(t)), std::get<1>(t), at<int64_t>(std::get<2>(t))};
}

EmbeddingTables tables_of(const TableTuples& t) {
  return {table(std::get<0>(t)), table(std::get<1>(t)), table(std::get<2>(t))};
}

EmbeddingLayerNormDtypes dtypes(int table, int weight) {
  return {static_cast<Dtype>(table), static_cast<Dtype>(weight)};
}

void forward(int device, Address stream, int table_dtype, int weight_dtype, int64_t tokens, int64_t cols,
             const TableTuples& tables, Address weight, Address bias, Address seed, double dropout_p, double eps,
             Address out, Address mean, Address rstd) {
  embedding_layer_norm_forward({tokens, cols, tables_of(tables), at<void>(weight), at<void>(bias), at<int64_t>(seed),
                                dropout_p, eps, at<void>(out), at<float>(mean), at<float>(rstd)},
                               dtypes(table_dtype, weight_dtype), on(device, stream));
}

void backward(int device, Address stream, int table_dtype, int weight_dtype, int64_t tokens, int64_t cols,
              const TableTuples& tables, Address grad_out, Address weight, Address mean, Address rstd, Address seed,
              double dropout_p, int64_t padding_id, Address grad_sum, Address word_keys, Address pair_keys,
              Address grad_weight, Address grad_bias, Address partials) {
  embedding_layer_norm_backward(
      {tokens, cols, tables_of(tables), at<void>(grad_out), at<void>(weight), at<float>(mean), at<float>(rstd),
       at<int64_t>(seed), dropout_p, padding_id, at<void>(grad_sum), at<int32_t>(word_keys), at<int32_t>(pair_keys),
       at<void>(grad_weight), at<void>(grad_bias), at<float>(partials)},
      dtypes(table_dtype, weight_dtype), on(device, stream));
}

void sum(int device, Address stream, int values_dtype, int out_dtype, int64_t count, int64_t cols, int64_t rows,
         Address keys, Address order, Address values, Address out) {
  sum_by_key({count, cols, rows, at<int32_t>(keys), at<int64_t>(order), at<void>(values), at<void>(out)},
             static_cast<Dtype>(values_dtype), static_cast<Dtype>(out_dtype), on(device, stream));
}

}  // namespace embedding_layer_norm_binding

inline void define_embedding_layer_norm(pybind11::module_& m) {
  using namespace embedding_layer_norm_binding;
  m.def("embedding_layer_norm_forward", &forward, release());
  m.def("embedding_layer_norm_backward", &backward, release());
  m.def("sum_by_key", &sum, release());
}

}  // namespace earlybert
