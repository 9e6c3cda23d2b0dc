#pragma once

#include "../cpu/encoder.h"

#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "cpu.h"
#include "cpu_attention.h"

namespace earlybert {
namespace encoder_binding {

// Heads and neurons; the norms' eps; weights and biases in the order of EncoderLayer.
using LayerAt = std::tuple<int64_t, int64_t, double, double, std::array<Address, 16>>;

EncoderLayer encoder_layer(const LayerAt& given) {
  const auto& [heads, neurons, attention_eps, output_eps, addresses] = given;
  const auto floats = [&addresses = addresses](std::size_t i) { return at<const float>(addresses[i]); };
  const auto linear = [&floats](std::size_t i) { return Linear{floats(i), floats(i + 1)}; };
  return {heads,
          neurons,
          linear(0),
          linear(2),
          linear(4),
          linear(6),
          {floats(8), floats(9), attention_eps},
          linear(10),
          linear(12),
          {floats(14), floats(15), output_eps}};
}

// sizes: sequences, tokens, max_seqlen, hidden, head_size.
void forward(const std::array<int64_t, 5>& sizes, double scale, Address cu_seqlens, const std::vector<LayerAt>& layers,
             int activation, bool first_token_only, Address x, Address out) {
  const auto& [sequences, tokens, max_seqlen, hidden, head_size] = sizes;
  const int64_t longest = attention_binding::longest_of("cu_seqlens", cu_seqlens, sequences, tokens, max_seqlen);
  std::vector<EncoderLayer> own;
  own.reserve(layers.size());
  for (const LayerAt& layer : layers) own.push_back(encoder_layer(layer));
  const EncoderForward arguments = {sequences,
                                    tokens,
                                    longest,
                                    hidden,
                                    head_size,
                                    scale,
                                    at<const int32_t>(cu_seqlens),
                                    own.data(),
                                    static_cast<int64_t>(own.size()),
                                    static_cast<Activation>(activation),
                                    first_token_only,
                                    at<const float>(x),
                                    at<float>(out)};
  check(EARLYBERT_CALL(encoder_forward, arguments));
}

}  // namespace encoder_binding

inline void define_encoder(pybind11::module_& m) { m.def("encoder_forward", &encoder_binding::forward, release()); }

}  // namespace earlybert
