// earlybert_kernels._cpu: the CPU ops on plain addresses. Shapes, dtypes and lifetimes are the caller's business
// (earlybert_kernels/backends/cpu.py); the names and shapes of the arguments stand in csrc/cpu/*.h.
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
#include "../cpu/dropout_add_layer_norm.h"

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

// Calls `function` as compiled for the instruction set in use.
#define EARLYBERT_TRY_ISA(ISA) \
  if (current() == #ISA) return ISA::EARLYBERT_FUNCTION(arguments);

void forward(const DropoutAddLayerNormForward& arguments) {
#define EARLYBERT_FUNCTION dropout_add_layer_norm_forward
  EARLYBERT_FOR_EACH_ISA(EARLYBERT_TRY_ISA)
#undef EARLYBERT_FUNCTION
}

void backward(const DropoutAddLayerNormBackward& arguments) {
#define EARLYBERT_FUNCTION dropout_add_layer_norm_backward
  EARLYBERT_FOR_EACH_ISA(EARLYBERT_TRY_ISA)
#undef EARLYBERT_FUNCTION
}

void dropout_add_layer_norm_forward(int64_t rows, int64_t cols, Address x, Address residual, Address weight,
                                    Address bias, Address seed, double dropout_p, double eps, Address out,
                                    Address mean, Address rstd) {
  forward({rows, cols, at<const float>(x), at<const float>(residual), at<const float>(weight),
           at<const float>(bias), at<const int64_t>(seed), dropout_p, eps, at<float>(out), at<float>(mean),
           at<float>(rstd)});
}

void dropout_add_layer_norm_backward(int64_t rows, int64_t cols, Address grad_out, Address x, Address residual,
                                     Address weight, Address mean, Address rstd, Address seed,
                                     double dropout_p, Address grad_x, Address grad_residual,
                                     Address grad_weight, Address grad_bias) {
  // Not std::vector: the kernel writes every element before it reads one.
  const std::unique_ptr<float[]> partials(
      new float[static_cast<std::size_t>(dropout_add_layer_norm_blocks(rows) * 2 * cols)]);
  backward({rows, cols, at<const float>(grad_out), at<const float>(x), at<const float>(residual),
            at<const float>(weight), at<const float>(mean), at<const float>(rstd), at<const int64_t>(seed),
            dropout_p, at<float>(grad_x), at<float>(grad_residual), at<float>(grad_weight),
            at<float>(grad_bias), partials.get()});
}

bool forward(const AttentionForward& arguments) {
#define EARLYBERT_FUNCTION attention_forward
  EARLYBERT_FOR_EACH_ISA(EARLYBERT_TRY_ISA)
#undef EARLYBERT_FUNCTION
  return false;
}

bool backward(const AttentionBackward& arguments) {
#define EARLYBERT_FUNCTION attention_backward
  EARLYBERT_FOR_EACH_ISA(EARLYBERT_TRY_ISA)
#undef EARLYBERT_FUNCTION
  return false;
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
  return {sequences, head_count, head_size, tokens_q, max_seqlen, longest, longest_q, at<const int32_t>(cu_seqlens),
          at<const int32_t>(cu_seqlens_q), heads(0), heads(1), heads(2), at<const bool>(head_mask),
          at<const float>(head_gates), at<const int64_t>(seed), dropout_p, static_cast<float>(scale)};
}

void attention_forward(const std::array<int64_t, 7>& sizes, Address cu_seqlens, Address cu_seqlens_q,
                       const std::array<HeadsAt, 3>& qkv, Address head_mask, Address head_gates, Address seed,
                       double dropout_p, double scale, Address out, Address logsumexp) {
  const AttentionInputs inputs = attention_inputs(sizes, cu_seqlens, cu_seqlens_q, qkv, head_mask, head_gates,
                                                  seed, dropout_p, scale);
  if (!forward({inputs, at<float>(out), at<float>(logsumexp)})) throw std::bad_alloc();
}

void attention_backward(const std::array<int64_t, 7>& sizes, Address cu_seqlens, Address cu_seqlens_q,
                        const std::array<HeadsAt, 3>& qkv, Address head_mask, Address head_gates, Address seed,
                        double dropout_p, double scale, Address grad_out, Address logsumexp, Address grad_q,
                        Address grad_k, Address grad_v, Address grad_gates) {
  const AttentionInputs inputs = attention_inputs(sizes, cu_seqlens, cu_seqlens_q, qkv, head_mask, head_gates,
                                                  seed, dropout_p, scale);
  if (!backward({inputs, at<const float>(grad_out), at<const float>(logsumexp), at<float>(grad_q),
                 at<float>(grad_k), at<float>(grad_v), at<float>(grad_gates)})) {
    throw std::bad_alloc();
  }
}

std::tuple<uint32_t, uint32_t, uint32_t, uint32_t> philox_words(uint32_t c0, uint32_t c1, uint32_t c2,
                                                                uint32_t c3, uint32_t k0, uint32_t k1) {
  const Words w = philox(Words{c0, c1, c2, c3}, k0, k1);
  return {w.w0, w.w1, w.w2, w.w3};
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of earlybert_kernels. Addresses are integers; 0 is none.";
  m.def("instruction_sets", &instruction_sets, "Those that this processor can run, best first.");
  m.def("instruction_set", [] { return current(); }, "The one in use.");
  m.def("use_instruction_set", &use_instruction_set, "Switches to one of instruction_sets(), for tests.");
  m.def("philox", &philox_words, "Philox-4x32-10 of a counter (4 words) under a key (2 words).");

  using release = py::call_guard<py::gil_scoped_release>;
  m.def("attention_forward", &attention_forward, release());
  m.def("attention_backward", &attention_backward, release());
  m.def("dropout_add_layer_norm_forward", &dropout_add_layer_norm_forward, release());
  m.def("dropout_add_layer_norm_backward", &dropout_add_layer_norm_backward, release());
}
