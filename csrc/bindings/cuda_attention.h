#pragma once

#include "../cuda/attention.h"

#include <tuple>

#include <pybind11/stl.h>

#include "cuda.h"

namespace earlybert {
namespace attention_binding {

using HeadsTuple = std::tuple<Address, int64_t, int64_t>;  // data, and what `Heads` says of it

Heads heads_of(const HeadsTuple& heads) {
  return {at<void>(std::get<0>(heads)), std::get<1>(heads), std::get<2>(heads)};
}

struct Problem {
  AttentionProblem problem;
  Dtype dtype;
  int64_t head_size;
};

Problem problem(int dtype, const HeadsTuple& q, const HeadsTuple& k, const HeadsTuple& v, Address cu_seqlens,
                Address cu_seqlens_q, Address head_mask, Address head_gates, Address seed, int64_t sequences,
                int64_t heads, int64_t head_size, int64_t tokens_q, int64_t max_keys, int64_t max_queries,
                double dropout_p, double scale, bool zero_pruned) {
  return {{heads_of(q), heads_of(k), heads_of(v), at<int32_t>(cu_seqlens), at<int32_t>(cu_seqlens_q),
           at<bool>(head_mask), at<float>(head_gates), at<int64_t>(seed), sequences, heads, tokens_q, max_keys,
           max_queries, dropout_p, scale, zero_pruned},
          static_cast<Dtype>(dtype),
          head_size};
}

void forward(int device, Address stream, const Problem& p, Address out, Address logsumexp) {
  attention_forward({p.problem, at<void>(out), at<float>(logsumexp)}, p.dtype, p.head_size, on(device, stream));
}

void backward(int device, Address stream, const Problem& p, const HeadsTuple& grad_out, Address out, Address logsumexp,
              const HeadsTuple& grad_q, const HeadsTuple& grad_k, const HeadsTuple& grad_v, Address grad_gates,
              Address workspace) {
  attention_backward({p.problem, heads_of(grad_out), at<void>(out), at<float>(logsumexp), heads_of(grad_q),
                      heads_of(grad_k), heads_of(grad_v), at<float>(grad_gates), at<float>(workspace)},
                     p.dtype, p.head_size, on(device, stream));
}

std::pair<int64_t, int64_t> parts(int device, const Problem& p) {
  const AttentionParts parts = attention_parts(device, p.problem, p.head_size);
  return {parts.count, parts.workspace};
}

}  // namespace attention_binding

inline void define_attention(pybind11::module_& m) {
  using namespace attention_binding;
  // Of its own in each of the two modules, which one process may load.
  pybind11::class_<Problem>(m, "AttentionProblem", pybind11::module_local(),
                            "What attention's forward and backward have in common.")
      .def(pybind11::init(&problem));
  m.def("attention_max_keys", &attention_max_keys, "The longest sequences that the device can take.");
  m.def("attention_parts", &parts, "Parts of a sequence in grad_gates, and float32 of workspace.");
  m.def("attention_forward", &forward, release());
  m.def("attention_backward", &backward, release());
}

}  // namespace earlybert
