// earlybert_kernels._cpu: the CPU ops on plain addresses. Shapes, dtypes and lifetimes are the caller's business
// (earlybert_kernels/backends/cpu); the names and shapes of the arguments stand in csrc/cpu/*.h.
#include "cpu.h"

#include <pybind11/stl.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "../common/counter_rng.h"
#include "../cpu/amx_check.h"
#include "../cpu/bfloat16_rate.h"
#include "../cpu/dropout_add_layer_norm.h"
#include "cpu_attention.h"
#include "cpu_cross_entropy.h"
#include "cpu_dropout_add_layer_norm.h"
#include "cpu_embedding_layer_norm.h"
#include "cpu_encoder.h"
#include "cpu_linear.h"
#include "cpu_optimizer_step.h"

namespace earlybert {
namespace {

const std::string kAmx = "amx_bf16", kEmulatedAmx = "amx_bf16_emulated";

// Whether the processor has AMX's products of bfloat16, and the system lets this process use them, which has to be
// asked for: registers of 8 KiB a thread would else surprise programs that have little room for signals' frames.
bool may_use_amx() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kAskForState = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM and the state's number
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool asked = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0;
  const bool tiles = (edx >> 24 & 1) != 0, bfloat16 = (edx >> 22 & 1) != 0;
  return asked && tiles && bfloat16 && syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
#else
  return false;
#endif
}

// Best first.
std::vector<std::string> find_instruction_sets() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bfloat16 = avx512 && __builtin_cpu_supports("avx512bf16");
  const bool fast = bfloat16 && avx512_bf16::bfloat16_is_fast();
  if (bfloat16 && may_use_amx() && avx512_bf16::amx_multiplies(false)) names.push_back(kAmx);
  if (fast) names.push_back("avx512_bf16");
  if (avx512) names.push_back("avx512");
  if (bfloat16 && !fast) names.push_back("avx512_bf16");
  if (avx2) names.push_back("avx2");
#endif
  names.push_back("baseline");
  return names;
}

const std::vector<std::string>& instruction_sets() {
  static const std::vector<std::string> names = find_instruction_sets();  // measured: asked once
  return names;
}

bool has(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::vector<std::string> emulated_instruction_sets() {
  return has(instruction_sets(), "avx512_bf16") ? std::vector<std::string>{kEmulatedAmx} : std::vector<std::string>{};
}

std::string& current() {
  static std::string name = instruction_sets().front();
  return name;
}

void use_instruction_set(const std::string& wanted) {
  if (has(instruction_sets(), wanted) || has(emulated_instruction_sets(), wanted)) {
    current() = wanted;
    return;
  }
  std::string names;
  for (const std::string& name : instruction_sets()) names += (names.empty() ? "" : ", ") + name;
  throw std::invalid_argument("this processor, or its system, has no instruction set '" + wanted + "'; it can run " +
                              names);
}

std::tuple<uint32_t, uint32_t, uint32_t, uint32_t> philox_words(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                                                                uint32_t k0, uint32_t k1, int rounds) {
  const auto [w] = philox(Words{{c0, c1, c2, c3}}, k0, k1, rounds);
  return {w[0], w[1], w[2], w[3]};
}

}  // namespace

const std::string& compiled_for() {
  static const std::string with_pairs = "avx512_bf16";  // AMX is but another way to multiply in it
  return current() == kAmx || current() == kEmulatedAmx ? with_pairs : current();
}

Products products(bool bfloat16) {
  if (!bfloat16) return Products::float32;
  return current() == kAmx ? Products::amx : current() == kEmulatedAmx ? Products::emulated_amx : Products::bfloat16;
}

void check_indices(const std::string& name, Address indices, int64_t count, int64_t limit, bool units) {
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

std::unique_ptr<float[]> layer_norm_partials(int64_t rows, int64_t cols) {
  return std::unique_ptr<float[]>(new float[static_cast<std::size_t>(layer_norm_blocks(rows) * 2 * cols)]);
}

}  // namespace earlybert

using namespace earlybert;

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of earlybert_kernels. Addresses are integers; 0 is none.";
  m.def("instruction_sets", &instruction_sets, "Those that this processor can run, best first.");
  m.def("emulated_instruction_sets", &emulated_instruction_sets, "Those that it can stand in for, for tests.");
  m.def("instruction_set", &current, "The one in use.");
  m.def("use_instruction_set", &use_instruction_set, "Switches to one of either, for tests.");
#if defined(__x86_64__)
  m.def(
      "emulated_amx_multiplies", [] { return avx512_bf16::amx_multiplies(true); },
      "What decides whether AMX is used, of what stands in for it; needs AVX512-BF16.");
#endif
  m.def("philox", &philox_words, "Philox-4x32 of a counter (4 words) under a key (2 words), and the number of rounds.");

  define_attention(m);
  define_cross_entropy(m);
  define_dropout_add_layer_norm(m);
  define_embedding_layer_norm(m);
  define_encoder(m);
  define_linear(m);
  define_optimizer_step(m);
}
