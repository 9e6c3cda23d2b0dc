// How every kernel is launched, and how it gets its shared memory.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "launch.h"

namespace earlybert {

// The block's dynamic shared memory, of which a launch gives sizeof(T) bytes or more. Nothing else declares any.
template <typename T>
__device__ __forceinline__ T& shared_memory() {
#if defined(EARLYBERT_EMULATED)
  return *reinterpret_cast<T*>(emulator::shared_memory());
#else
  extern __shared__ __align__(1024) unsigned char earlybert_shared[];
  return *reinterpret_cast<T*>(earlybert_shared);
#endif
}

// One call of an op: makes its device current while it lives, launches its kernels, and says which call it was when
// one of them cannot be launched. Nothing waits for the device.
class Call {
 public:
  struct Size {
    const char* name;
    int64_t value;
  };

  template <size_t kCount>
  Call(Launch where, const char* op, const Size (&sizes)[kCount]) : where_(where), op_(op), count_(kCount) {
    static_assert(kCount <= kMostSizes, "a message of readable length");
    std::copy(sizes, sizes + kCount, sizes_);
    check(cudaGetDevice(&before_));
    if (before_ != where.device) check(cudaSetDevice(where.device));
  }
  ~Call() {
    if (before_ != where_.device) cudaSetDevice(before_);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Throws std::runtime_error.
  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Arguments... arguments) const {
    if (shared_bytes > 48 * 1024) {  // what a kernel may have without asking
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = static_cast<cudaStream_t>(where_.stream);
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
  }

  void check(cudaError_t error) const {
    if (error != cudaSuccess) fail(cudaGetErrorString(error));
  }

  // A call with sizes or dtypes that the op does not take.
  [[noreturn]] void fail(const std::string& why) const {
    std::string message = std::string(op_) + " (cuda), ";
    for (size_t i = 0; i < count_; ++i) {
      message += std::string(sizes_[i].name) + " " + std::to_string(sizes_[i].value) + ", ";
    }
    message.resize(message.size() - 2);
    throw std::runtime_error(message + ": " + why);
  }

 private:
  static constexpr size_t kMostSizes = 6;

  Launch where_;
  const char* op_;
  size_t count_;
  Size sizes_[kMostSizes];
  int before_ = 0;
};

inline unsigned blocks_for(int64_t items, int64_t items_of_a_block) {
  return static_cast<unsigned>((items + items_of_a_block - 1) / items_of_a_block);
}

}  // namespace earlybert
