#include "encoder.h"

#include <cstring>
#include <memory>
#include <new>

#include "attention.h"
#include "dropout_add_layer_norm.h"
#include "linear.h"

namespace earlybert {
namespace EARLYBERT_ISA {

// Numbers that are read alone, where they are not written.
static Numbers floats(const float* data) { return {const_cast<float*>(data), nullptr}; }

// y (rows, out) of x (rows, in), whose rows `picked` are taken where that is not null.
static bool apply(const Linear& layer, int64_t rows, int64_t in, int64_t out, const float* x, const int64_t* picked,
                  Activation activation, float* y) {
  const LinearInputs inputs = {rows, in, out, floats(x), in,      picked,  const_cast<float*>(layer.weight),
                               out,  in, in,  nullptr,   nullptr, nullptr, Products::float32};
  return linear_forward({inputs, layer.bias, activation, {}, floats(y), out});
}

static void apply(const Norm& norm, int64_t rows, int64_t cols, const float* x, const float* residual, float* out) {
  dropout_add_layer_norm_forward(
      {rows, cols, x, residual, norm.weight, norm.bias, nullptr, 0.0, norm.eps, out, nullptr, nullptr});
}

bool encoder_forward(const EncoderForward& a) {
  int64_t heads = 0, neurons = 0;
  for (int64_t i = 0; i < a.layer_count; ++i) {
    heads = heads > a.layers[i].heads ? heads : a.layers[i].heads;
    neurons = neurons > a.layers[i].neurons ? neurons : a.layers[i].neurons;
  }
  const int64_t inner = heads * a.head_size, per_token = 4 * inner + 3 * a.hidden + neurons;
  const std::unique_ptr<float[]> memory(new (std::nothrow) float[static_cast<std::size_t>(a.tokens * per_token)]);
  const std::unique_ptr<int64_t[]> first_rows(new (std::nothrow) int64_t[static_cast<std::size_t>(a.sequences)]);
  const std::unique_ptr<int32_t[]> firsts(new (std::nothrow) int32_t[static_cast<std::size_t>(a.sequences + 1)]);
  if (memory == nullptr || first_rows == nullptr || firsts == nullptr) return false;
  float *q = memory.get(), *k = q + a.tokens * inner, *v = k + a.tokens * inner, *context = v + a.tokens * inner;
  float *h = context + a.tokens * inner, *middle = h + a.tokens * a.hidden, *result = middle + a.tokens * a.hidden;
  float* activated = result + a.tokens * a.hidden;
  for (int64_t i = 0; i < a.sequences; ++i) first_rows[i] = a.cu_seqlens[i];
  for (int64_t i = 0; i <= a.sequences; ++i) firsts[i] = static_cast<int32_t>(i);

  const float* x = a.x;
  bool enough = true;
  for (int64_t i = 0; i < a.layer_count && enough; ++i) {
    const EncoderLayer& layer = a.layers[i];
    const bool last = i + 1 == a.layer_count, first_only = last && a.first_token_only;
    const int64_t own = layer.heads * a.head_size, rows = first_only ? a.sequences : a.tokens;
    const int64_t* picked = first_only ? first_rows.get() : nullptr;
    enough = apply(layer.query, rows, a.hidden, own, x, picked, Activation::none, q) &&
             apply(layer.key, a.tokens, a.hidden, own, x, nullptr, Activation::none, k) &&
             apply(layer.value, a.tokens, a.hidden, own, x, nullptr, Activation::none, v);
    const auto heads_of = [&](const float* data) { return Heads{floats(data), own, a.head_size}; };
    const int64_t longest_q = first_only ? 1 : a.longest;
    const AttentionInputs inputs = {a.sequences,
                                    layer.heads,
                                    a.head_size,
                                    rows,
                                    a.longest,
                                    longest_q,
                                    a.longest > longest_q ? a.longest : longest_q,  // the window: all
                                    a.cu_seqlens,
                                    first_only ? firsts.get() : a.cu_seqlens,
                                    heads_of(q),
                                    heads_of(k),
                                    heads_of(v),
                                    nullptr,
                                    nullptr,
                                    nullptr,
                                    0.0,
                                    static_cast<float>(a.scale),
                                    Products::float32};
    enough = enough && attention_forward({inputs, floats(context), nullptr}) &&
             apply(layer.attention_output, rows, own, a.hidden, context, nullptr, Activation::none, h);
    if (first_only) {  // the rows that it is added to, moved together: no other is needed any more
      for (int64_t row = 0; row < rows; ++row) {
        std::memmove(result + row * a.hidden, x + first_rows[row] * a.hidden, sizeof(float) * a.hidden);
      }
    }
    apply(layer.attention_norm, rows, a.hidden, h, first_only ? result : x, middle);
    enough = enough &&
             apply(layer.intermediate, rows, a.hidden, layer.neurons, middle, nullptr, a.activation, activated) &&
             apply(layer.output, rows, layer.neurons, a.hidden, activated, nullptr, Activation::none, h);
    apply(layer.output_norm, rows, a.hidden, h, middle, last ? a.out : result);
    x = result;
  }
  return enough;
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
