// What the files of the CPU module's bindings share: one header an op, each with one function that adds it; cpu.cpp has
// them all, because pybind11's templates take the compiler five seconds a file.
#pragma once

#include <memory>
#include <new>
#include <string>
#include <tuple>

#include "../cpu/instruction_sets.h"
#include "../cpu/numbers.h"
#include "addresses.h"

namespace earlybert {

// The namespace of the kernels in use, and how they multiply: what is rounded to bfloat16, or is not.
const std::string& compiled_for();
Products products(bool bfloat16);

// Calls a function as compiled for the instruction set in use.
#if defined(__x86_64__)
#define EARLYBERT_CALL(FUNCTION, ...)                                   \
  (compiled_for() == "avx512_bf16" ? avx512_bf16::FUNCTION(__VA_ARGS__) \
   : compiled_for() == "avx512"    ? avx512::FUNCTION(__VA_ARGS__)      \
   : compiled_for() == "avx2"      ? avx2::FUNCTION(__VA_ARGS__)        \
                                   : baseline::FUNCTION(__VA_ARGS__))
#else
#define EARLYBERT_CALL(FUNCTION, ...) baseline::FUNCTION(__VA_ARGS__)
#endif

// An address, and whether bfloat16 is there, or float32.
using NumbersAt = std::tuple<Address, bool>;
inline Numbers numbers(const NumbersAt& place) {
  const auto& [address, half] = place;
  return {half ? nullptr : at<float>(address), half ? at<uint16_t>(address) : nullptr};
}

// For kernels that allocate scratch memory and say whether they could.
inline void check(bool enough_memory) {
  if (!enough_memory) throw std::bad_alloc();
}

// Throws unless all of `count` indices are below `limit`, and each above the one before it if they are to be units:
// kernels read and write wherever they point, and a compiled graph hands them over unchecked.
void check_indices(const std::string& name, Address indices, int64_t count, int64_t limit, bool units = false);

// Scratch for layer norm's sums over rows; not std::vector: the kernels write every element before they read one.
std::unique_ptr<float[]> layer_norm_partials(int64_t rows, int64_t cols);

}  // namespace earlybert
