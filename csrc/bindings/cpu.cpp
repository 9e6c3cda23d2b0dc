// earlybert_kernels._cpu: the CPU ops on plain addresses. Shapes, dtypes and lifetimes are the caller's business
// (earlybert_kernels/backends/cpu.py); the names and shapes of the arguments stand in csrc/cpu/*.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../common/counter_rng.h"
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
  throw std::invalid_argument("this processor or build has no instruction set '" + wanted + "'");
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
  m.def("dropout_add_layer_norm_forward", &dropout_add_layer_norm_forward, release());
  m.def("dropout_add_layer_norm_backward", &dropout_add_layer_norm_backward, release());
}
