// earlybert_kernels._cpu: the CPU ops on plain addresses. Shapes, dtypes and lifetimes are the caller's business
// (earlybert_kernels/backends/cpu); the names and shapes of the arguments stand in csrc/cpu/*.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../common/counter_rng.h"
#include "../cpu/attention.h"
#include "../cpu/cross_entropy.h"
#include "../cpu/dropout_add_layer_norm.h"
#include "../cpu/embedding_layer_norm.h"
#include "../cpu/lamb_step.h"
#include "../cpu/linear.h"

namespace py = pybind11;
using namespace earlybert;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Best first.
std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    names.push_back("avx512");
  }
  if (avx2) names.push_back("avx2");
#endif
  names.push_back("baseline");
  return names;
}

std::string& current() {
  static std::string name = instruction_sets().front();
  return name;
}

void use_instruction_set(const std::string& wanted) {
  for (const std::string& name : instruction_sets()) {
    if (name == wanted) {
      current() = wanted;
      return;
    }
  }
  std::string names;
  for (const std::string& name : instruction_sets()) names += (names.empty() ? "" : ", ") + name;
  throw std::invalid_argument("this processor has no instruction set '" + wanted + "'; it can run " + names);
}

// Calls a function as compiled for the instruction set in use.
#if defined(__x86_64__)
#define EARLYBERT_CALL(FUNCTION, ...)                                   \
  (current() == "avx512" ? avx512::FUNCTION(__VA_ARGS__)                \
   : current() == "avx2" ? avx2::FUNCTION(__VA_ARGS__) : baseline::FUNCTION(__VA_ARGS__))
#else
#define EARLYBERT_CALL(FUNCTION, ...) baseline::FUNCTION(__VA_ARGS__)
#endif

// For kernels that allocate scratch memory and say whether they could.
void check(bool enough_memory) {
  if (!enough_memory) throw std::bad_alloc();
}

// Throws unless all of `count` indices are below `limit`, and each above the one before it if they are to be units: kernels read and write wherever they point, and a compiled
// graph hands them over unchecked.
void check_indices(const std::string& name, Address indices, int64_t count, int64_t limit, bool units = false) {
  for (int64_t i = 0; indices != 0 && i < count; ++i) {
    const int64_t index = at<const int64_t>(indices)[i];
    if (index < 0 || index >= limit) {
      throw std::out_of_range(name + ": " + std::to_string(index) + " is not in 0 to " + std::to_string(limit - 1));
    }
    if (units && i > 0 && index <= at<const int64_t>(indices)[i - 1]) {
      throw std::invalid_argument(name + ": " + std::to_string(index) + " comes twice, or after a larger one");
    }
  }
}

// Scratch for the sums over rows; not std::vector: the kernels write every element before they read one.
std::unique_ptr<float[]> layer_norm_partials(int64_t rows, int64_t cols) {
  return std::unique_ptr<float[]>(new float[static_cast<std::size_t>(layer_norm_blocks(rows) * 2 * cols)]);
}

void dropout_add_layer_norm_forward(int64_t rows, int64_t cols, Address x, Address residual, Address weight,
                                    Address bias, Address seed, double dropout_p, double eps, Address out,
                                    Address mean, Address rstd) {
  const DropoutAddLayerNormForward arguments = {
      rows, cols, at<const float>(x), at<const float>(residual), at<const float>(weight), at<const float>(bias),
      at<const int64_t>(seed), dropout_p, eps, at<float>(out), at<float>(mean), at<float>(rstd)};
  EARLYBERT_CALL(dropout_add_layer_norm_forward, arguments);
}

void dropout_add_layer_norm_backward(int64_t rows, int64_t cols, Address grad_out, Address x, Address residual,
                                     Address weight, Address mean, Address rstd, Address seed,
                                     double dropout_p, Address grad_x, Address grad_residual,
                                     Address grad_weight, Address grad_bias) {
  const std::unique_ptr<float[]> partials = layer_norm_partials(rows, cols);
  const DropoutAddLayerNormBackward arguments = {
      rows, cols, at<const float>(grad_out), at<const float>(x), at<const float>(residual), at<const float>(weight),
      at<const float>(mean), at<const float>(rstd), at<const int64_t>(seed), dropout_p, at<float>(grad_x),
      at<float>(grad_residual), at<float>(grad_weight), at<float>(grad_bias), partials.get()};
  EARLYBERT_CALL(dropout_add_layer_norm_backward, arguments);
}

// An address, and the strides of tokens and heads.
using HeadsAt = std::tuple<Address, int64_t, int64_t>;

// The length of the longest sequence. The kernel writes wherever the offsets point, and a compiled graph hands them
// over unchecked.
int64_t longest_of(const std::string& name, Address offsets, int64_t sequences, int64_t tokens, int64_t most) {
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

// sizes: sequences, heads, head_size, tokens_q, tokens, max_seqlen, max_seqlen_q.
AttentionInputs attention_inputs(const std::array<int64_t, 7>& sizes, Address cu_seqlens, Address cu_seqlens_q,
                                 const std::array<HeadsAt, 3>& qkv, Address head_mask, Address head_gates,
                                 Address seed, double dropout_p, double scale) {
  const auto heads = [&](int which) {
    const auto& [address, token_stride, head_stride] = qkv[static_cast<std::size_t>(which)];
    return Heads{at<const float>(address), token_stride, head_stride};
  };
  const auto& [sequences, head_count, head_size, tokens_q, tokens, max_seqlen, max_seqlen_q] = sizes;
  const int64_t longest = longest_of("cu_seqlens", cu_seqlens, sequences, tokens, max_seqlen);
  const int64_t longest_q = longest_of("cu_seqlens_q", cu_seqlens_q, sequences, tokens_q, max_seqlen_q);
  return {sequences, head_count, head_size, tokens_q, longest, longest_q, at<const int32_t>(cu_seqlens),
          at<const int32_t>(cu_seqlens_q), heads(0), heads(1), heads(2), at<const bool>(head_mask),
          at<const float>(head_gates), at<const int64_t>(seed), dropout_p, static_cast<float>(scale)};
}

void attention_forward(const std::array<int64_t, 7>& sizes, Address cu_seqlens, Address cu_seqlens_q,
                       const std::array<HeadsAt, 3>& qkv, Address head_mask, Address head_gates, Address seed,
                       double dropout_p, double scale, Address out, Address logsumexp) {
  const AttentionInputs inputs = attention_inputs(sizes, cu_seqlens, cu_seqlens_q, qkv, head_mask, head_gates,
                                                  seed, dropout_p, scale);
  const AttentionForward arguments = {inputs, at<float>(out), at<float>(logsumexp)};
  check(EARLYBERT_CALL(attention_forward, arguments));
}

void attention_backward(const std::array<int64_t, 7>& sizes, Address cu_seqlens, Address cu_seqlens_q,
                        const std::array<HeadsAt, 3>& qkv, Address head_mask, Address head_gates, Address seed,
                        double dropout_p, double scale, Address grad_out, Address logsumexp, Address grad_q,
                        Address grad_k, Address grad_v, Address grad_gates) {
  const AttentionInputs inputs = attention_inputs(sizes, cu_seqlens, cu_seqlens_q, qkv, head_mask, head_gates,
                                                  seed, dropout_p, scale);
  const AttentionBackward arguments = {inputs, at<const float>(grad_out), at<const float>(logsumexp),
                                       at<float>(grad_q), at<float>(grad_k), at<float>(grad_v),
                                       at<float>(grad_gates)};
  check(EARLYBERT_CALL(attention_backward, arguments));
}

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

void embedding_layer_norm_forward(int64_t tokens, int64_t cols, const std::array<TableAt, 3>& tables, Address weight,
                                  Address seed, double dropout_p, Address bias, double eps, Address out,
                                  Address mean, Address rstd) {
  const EmbeddingLayerNormForward arguments = {embedding_inputs(tokens, cols, tables, weight, seed, dropout_p),
                                               at<const float>(bias), eps, at<float>(out), at<float>(mean),
                                               at<float>(rstd)};
  EARLYBERT_CALL(embedding_layer_norm_forward, arguments);
}

void embedding_layer_norm_backward(int64_t tokens, int64_t cols, const std::array<TableAt, 3>& tables,
                                   Address weight, Address seed, double dropout_p, Address grad_out, Address mean,
                                   Address rstd, int64_t padding_id, Address grad_weight, Address grad_bias) {
  const std::unique_ptr<float[]> partials = layer_norm_partials(tokens, cols);
  const std::unique_ptr<float[]> scratch(new float[static_cast<std::size_t>(tokens * 2 * cols)]);
  const EmbeddingLayerNormBackward arguments = {embedding_inputs(tokens, cols, tables, weight, seed, dropout_p),
                                                at<const float>(grad_out), at<const float>(mean),
                                                at<const float>(rstd), padding_id, at<float>(grad_weight),
                                                at<float>(grad_bias), partials.get(), scratch.get()};
  EARLYBERT_CALL(embedding_layer_norm_backward, arguments);
}

// sizes: tokens, in, out; the rows of x and their stride; those of the weight, and its columns. picks: x_rows,
// out_units, in_units, in_scale.
using LinearSizes = std::array<int64_t, 8>;

LinearInputs linear_inputs(const LinearSizes& sizes, Address x, Address weight,
                           const std::array<Address, 4>& picks) {
  const auto& [tokens, in, out, x_rows, x_stride, weight_rows, weight_stride, weight_columns] = sizes;
  check_indices("row of x", picks[0], tokens, x_rows);
  check_indices("kept unit", picks[1], out, weight_rows, true);
  check_indices("kept unit", picks[2], in, weight_columns, true);
  return {tokens, in, out, at<const float>(x), x_stride, at<const int64_t>(picks[0]), at<const float>(weight),
          weight_rows, weight_stride, weight_columns, at<const int64_t>(picks[1]), at<const int64_t>(picks[2]),
          at<const float>(picks[3])};
}

void linear_forward(const LinearSizes& sizes, Address x, Address weight,
                    const std::array<Address, 4>& picks, Address bias, int activation, Address preactivation,
                    Address y, int64_t y_stride) {
  const LinearForward arguments = {linear_inputs(sizes, x, weight, picks), at<const float>(bias),
                                   static_cast<Activation>(activation), at<float>(preactivation), at<float>(y),
                                   y_stride};
  check(EARLYBERT_CALL(linear_forward, arguments));
}

void linear_backward(const LinearSizes& sizes, Address x, Address weight,
                     const std::array<Address, 4>& picks, Address grad_y, int64_t grad_y_stride,
                     Address grad_x, int64_t grad_x_stride, bool accumulate, int activation,
                     Address preactivation, Address grad_weight, Address grad_bias, Address grad_in_scale) {
  const LinearBackward arguments = {linear_inputs(sizes, x, weight, picks), at<const float>(grad_y), grad_y_stride,
                                    at<float>(grad_x), grad_x_stride, accumulate, static_cast<Activation>(activation),
                                    at<const float>(preactivation), at<float>(grad_weight), at<float>(grad_bias),
                                    at<float>(grad_in_scale)};
  check(EARLYBERT_CALL(linear_backward, arguments));
}

void cross_entropy(int64_t rows, int64_t cols, Address logits, Address labels, double scale, Address losses) {
  check_indices("masked_lm_loss: a label", labels, rows, cols);
  const CrossEntropy arguments = {rows, cols, at<float>(logits), at<const int64_t>(labels),
                                  static_cast<float>(scale), at<float>(losses)};
  EARLYBERT_CALL(cross_entropy, arguments);
}

// A tensor's size, the addresses of parameter, gradient and moments, and the scales of the moments.
using LambTensorAt = std::tuple<int64_t, Address, Address, Address, Address, double, double>;

void lamb_step(const std::vector<LambTensorAt>& all, double lr, double beta1, double beta2, double eps,
               double weight_decay, bool adapt, double l1) {
  std::vector<LambTensor> tensors;
  for (const auto& [size, parameter, gradient, exp_avg, exp_avg_sq, scale, sqrt_scale] : all) {
    tensors.push_back({size, at<float>(parameter), at<const float>(gradient), at<float>(exp_avg),
                       at<float>(exp_avg_sq), static_cast<float>(scale), static_cast<float>(sqrt_scale)});
  }
  const auto narrow = [](double x) { return static_cast<float>(x); };
  const LambStep arguments = {tensors.data(), static_cast<int64_t>(tensors.size()), narrow(lr), narrow(beta1),
                              narrow(1.0 - beta1), narrow(beta2), narrow(1.0 - beta2), narrow(eps),
                              narrow(weight_decay), adapt, narrow(l1)};
  check(EARLYBERT_CALL(lamb_step, arguments));
}

std::tuple<uint32_t, uint32_t, uint32_t, uint32_t> philox_words(uint32_t c0, uint32_t c1, uint32_t c2,
                                                                uint32_t c3, uint32_t k0, uint32_t k1,
                                                                int rounds) {
  const auto [w] = philox(Words{{c0, c1, c2, c3}}, k0, k1, rounds);
  return {w[0], w[1], w[2], w[3]};
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of earlybert_kernels. Addresses are integers; 0 is none.";
  m.def("instruction_sets", &instruction_sets, "Those that this processor can run, best first.");
  m.def("instruction_set", [] { return current(); }, "The one in use.");
  m.def("use_instruction_set", &use_instruction_set, "Switches to one of instruction_sets(), for tests.");
  m.def("philox", &philox_words, "Philox-4x32 of a counter (4 words) under a key (2 words), and the number of rounds.");

  using release = py::call_guard<py::gil_scoped_release>;
  m.def("attention_forward", &attention_forward, release());
  m.def("attention_backward", &attention_backward, release());
  m.def("cross_entropy", &cross_entropy, release());
  m.def("dropout_add_layer_norm_forward", &dropout_add_layer_norm_forward, release());
  m.def("dropout_add_layer_norm_backward", &dropout_add_layer_norm_backward, release());
  m.def("embedding_layer_norm_forward", &embedding_layer_norm_forward, release());
  m.def("embedding_layer_norm_backward", &embedding_layer_norm_backward, release());
  m.def("lamb_step", &lamb_step, release());
  m.def("linear_forward", &linear_forward, release());
  m.def("linear_backward", &linear_backward, release());
}
