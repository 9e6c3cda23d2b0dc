#pragma once

#include "../cpu/attention.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <stdexcept>
#include <tuple>

#include "cpu.h"

namespace earlybert {
namespace attention_binding {

// Where they are, and the strides of tokens and heads.
using HeadsAt = std::tuple<NumbersAt, int64_t, int64_t>;

// The length of the longest sequence. The kernel writes wherever the offsets point, and a compiled graph hands them
// over unchecked.
inline int64_t longest_of(const std::string& name, Address offsets, int64_t sequences, int64_t tokens, int64_t most) {
  const int32_t* at_sequence = at<const int32_t>(offsets);
  int64_t longest = 0;
  bool valid = at_sequence[0] == 0 && at_sequence[sequences] == tokens;
  for (int64_t i = 0; i < sequences; ++i) {
    const int64_t length = static_cast<int64_t>(at_sequence[i + 1]) - at_sequence[i];
    valid = valid && length >= 0;
    longest = std::max(longest, length);
  }
  if (valid && longest <= most) return longest;
  throw std::invalid_argument("attention: " + name + " does not run from 0 to " + std::to_string(tokens) +
                              " in steps of 0 to " + std::to_string(most));
}

// sizes: sequences, heads, head_size, tokens_q, tokens, max_seqlen, max_seqlen_q, window (-1 for none).
AttentionInputs attention_inputs(const std::array<int64_t, 8>& sizes, Address cu_seqlens, Address cu_seqlens_q,
                                 const std::array<HeadsAt, 3>& qkv, Address head_mask, Address head_gates, Address seed,
                                 double dropout_p, double scale) {
  const auto heads = [&](int which) {
    const auto& [place, token_stride, head_stride] = qkv[static_cast<std::size_t>(which)];
    return Heads{numbers(place), token_stride, head_stride};
  };
  const auto& [sequences, head_count, head_size, tokens_q, tokens, max_seqlen, max_seqlen_q, window] = sizes;
  const int64_t longest = longest_of("cu_seqlens", cu_seqlens, sequences, tokens, max_seqlen);
  const int64_t longest_q = longest_of("cu_seqlens_q", cu_seqlens_q, sequences, tokens_q, max_seqlen_q);
  return {sequences,
          head_count,
          head_size,
          tokens_q,
          longest,
          longest_q,
          window < 0 ? std::max(longest, longest_q) : window,
          at<const int32_t>(cu_seqlens),
          at<const int32_t>(cu_seqlens_q),
          heads(0),
          heads(1),
          heads(2),
          at<const bool>(head_mask),
          at<const float>(head_gates),
          at<const int64_t>(seed),
          dropout_p,
          static_cast<float>(scale),
          products(std::get<1>(std::get<0>(qkv[0])))};
}

void forward(const std::array<int64_t, 8>& sizes, Address cu_seqlens, Address cu_seqlens_q,
             const std::array<HeadsAt, 3>& qkv, Address head_mask, Address head_gates, Address seed, double dropout_p,
             double scale, const NumbersAt& out, Address logsumexp) {
  const AttentionInputs inputs =
      attention_inputs(sizes, cu_seqlens, cu_seqlens_q, qkv, head_mask, head_gates, seed, dropout_p, scale);
  const AttentionForward arguments = {inputs, numbers(out), at<float>(logsumexp)};
  check(EARLYBERT_CALL(attention_forward, arguments));
}

void backward(const std::array<int64_t, 8>& sizes, Address cu_seqlens, Address cu_seqlens_q,
              const std::array<HeadsAt, 3>& qkv, Address head_mask, Address head_gates, Address seed, double dropout_p,
              double scale, const NumbersAt& grad_out, Address logsumexp, const NumbersAt& grad_q,
              const NumbersAt& grad_k, const NumbersAt& grad_v, Address grad_gates) {
  const AttentionInputs inputs =
      attention_inputs(sizes, cu_seqlens, cu_seqlens_q, qkv, head_mask, head_gates, seed, dropout_p, scale);
  const AttentionBackward arguments = {inputs,          numbers(grad_out), at<const float>(logsumexp), numbers(grad_q),
                                       numbers(grad_k), numbers(grad_v),   at<float>(grad_gates)};
  check(EARLYBERT_CALL(attention_backward, arguments));
}

}  // namespace attention_binding

inline void define_attention(pybind11::module_& m) {
  using namespace attention_binding;
  m.def("attention_forward", &forward, release());
  m.def("attention_backward", &backward, release());
}

}  // namespace earlybert
