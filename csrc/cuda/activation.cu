#include "activation.h"

#include "column_sums.cuh"
#include "launch.cuh"
#include "types.cuh"

namespace earlybert {
namespace {

// A block has 32 * kColumns columns, of which each lane of a warp keeps kColumns, and its warps take rows in turn.
constexpr int kWarps = 8, kThreads = 32 * kWarps, kColumns = 8, kBlockColumns = 32 * kColumns;
constexpr int kForwardRows = 4;  // rows of a warp in forward, which share the block's gates

// Blocks that a multiprocessor is to hold, as many as registers let without spills, in half precision and 16-byte
// vectors. A multiprocessor of an H200 writes as much as it reads, 18 bytes a nanosecond, and waits some 800 of them
// for what it reads: 15 KB have to be under way, and with these numbers 16 and 24 are.
constexpr int kForwardResident = 4, kBackwardResident = 3, kOtherResident = 2;

// Backward's blocks, each of which writes one row of partial sums for its columns: what an H100 or H200 holds at once.
// The number is fixed rather than read from the device, so that results do not depend on the device's size.
constexpr int64_t kBackwardBlocks = kBackwardResident * 132;

// A thread's columns are vectors of kVector neighbours, 16 bytes, or where rows are not aligned for that single
// values, 32 columns apart: either way a warp's accesses lie side by side.
template <typename T>
constexpr int kAlignedVector = 16 / static_cast<int>(sizeof(T));

template <typename T, int kVector>
constexpr int resident(int of_half_vectors) {
  return sizeof(T) == 2 && kVector > 1 ? of_half_vectors : kOtherResident;
}

template <typename T, int kVector>
struct Columns {
  struct alignas(kVector * sizeof(T)) Vector {
    T v[kVector];
  };
  static constexpr int kItems = kColumns / kVector;
  Vector items[kItems];

  // Where item i begins within the block's columns.
  static __device__ __forceinline__ int at(int i) { return (i * 32 + static_cast<int>(threadIdx.x % 32)) * kVector; }
  __device__ __forceinline__ void load(const T* row, int cols) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (at(i) < cols) items[i] = *reinterpret_cast<const Vector*>(row + at(i));
    }
  }
  __device__ __forceinline__ void store(T* row, int cols) const {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (at(i) < cols) store_result(reinterpret_cast<Vector*>(row + at(i)), items[i]);
    }
  }
  // The thread's column j, and where it is.
  __device__ __forceinline__ T& value(int j) { return items[j / kVector].v[j % kVector]; }
  static __device__ __forceinline__ int column(int j) { return at(j / kVector) + j % kVector; }

  static __device__ __forceinline__ void load_gates(const float* gates, int cols, float (&values)[kColumns]) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) values[j] = gates != nullptr && column(j) < cols ? gates[column(j)] : 1.0f;
  }
};

template <Activation kActivation>
__device__ __forceinline__ Activated<float> activated(float x) {
  if constexpr (kActivation == Activation::gelu) return gelu<Scalar>(x);
  if constexpr (kActivation == Activation::gelu_tanh) return gelu_tanh<Scalar>(x);
  return relu<Scalar>(x);
}

template <typename T, int kVector, Activation kActivation>
__global__ void __launch_bounds__(kThreads, resident<T, kVector>(kForwardResident))
    forward_kernel(const ActivationForward a) {
  using C = Columns<T, kVector>;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockColumns;
  const int cols = static_cast<int>(a.cols - first);  // from the block's first
  const T* y = static_cast<const T*>(a.y) + first;
  T* h = static_cast<T*>(a.h) + first;
  float gates[kColumns];
  C::load_gates(a.gates == nullptr ? nullptr : a.gates + first, cols, gates);

  for (int64_t row = blockIdx.y * kWarps + threadIdx.x / 32; row < a.rows; row += gridDim.y * kWarps) {
    C values;
    values.load(y + row * a.cols, cols);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      values.value(j) = from_float<T>(gates[j] * activated<kActivation>(to_float(values.value(j))).value);
    }
    values.store(h + row * a.cols, cols);
  }
}

// Of each warp, the sums of y's gradient and of the gates' gradient, for each of the block's columns.
using Sums = float[2][kWarps][kBlockColumns];

template <typename T, int kVector, Activation kActivation>
__global__ void __launch_bounds__(kThreads, resident<T, kVector>(kBackwardResident))
    backward_kernel(const ActivationBackward a) {
  using C = Columns<T, kVector>;
  auto& sums = shared_memory<Sums>();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kBlockColumns;
  const int cols = static_cast<int>(a.cols - first), warp = threadIdx.x / 32;
  T* grad = static_cast<T*>(a.grad) + first;
  const T* y = static_cast<const T*>(a.y) + first;
  T* h = static_cast<T*>(a.h) + first;
  float gates[kColumns], sum_bias[kColumns] = {}, sum_gates[kColumns] = {};
  C::load_gates(a.gates == nullptr ? nullptr : a.gates + first, cols, gates);

  for (int64_t row = blockIdx.y * kWarps + warp; row < a.rows; row += gridDim.y * kWarps) {
    C grads, values;
    grads.load(grad + row * a.cols, cols);
    values.load(y + row * a.cols, cols);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const Activated<float> act = activated<kActivation>(to_float(values.value(j)));
      const float grad_h = to_float(grads.value(j)), grad_y = grad_h * gates[j] * act.slope;
      sum_bias[j] += grad_y;
      sum_gates[j] += grad_h * act.value;
      grads.value(j) = from_float<T>(grad_y);
      values.value(j) = from_float<T>(gates[j] * act.value);
    }
    grads.store(grad + row * a.cols, cols);
    values.store(h + row * a.cols, cols);
  }

#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    sums[0][warp][C::column(j)] = sum_bias[j];
    sums[1][warp][C::column(j)] = sum_gates[j];
  }
  __syncthreads();
  const int column = static_cast<int>(threadIdx.x);
  static_assert(kThreads == kBlockColumns, "a thread adds up one column");
  if (column >= cols) return;
  for (int which = 0; which < (a.grad_gates == nullptr ? 1 : 2); ++which) {
    float total = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) total += sums[which][w][column];
    store_result(a.partials + (static_cast<int64_t>(which) * gridDim.y + blockIdx.y) * a.cols + first + column, total);
  }
}

template <Activation kActivation>
struct Chosen {
  static constexpr Activation value = kActivation;
};

// Calls `body` with the activation, as `body(Chosen<...>{})`.
template <typename Body>
void with_activation(const Call& call, Activation activation, Body body) {
  switch (activation) {
    case Activation::gelu: return body(Chosen<Activation::gelu>{});
    case Activation::gelu_tanh: return body(Chosen<Activation::gelu_tanh>{});
    case Activation::relu: return body(Chosen<Activation::relu>{});
    case Activation::none: break;
  }
  call.fail("there is no activation to compute");
}

// Whether every row of a (rows, cols) matrix that begins there can be gone through in vectors.
template <typename T>
bool aligned(int64_t cols, const void* matrix) {
  return cols % kAlignedVector<T> == 0 && reinterpret_cast<std::uintptr_t>(matrix) % 16 == 0;
}

void check_sizes(const Call& call, int64_t rows, int64_t cols) {
  if (rows < 0 || cols < 0 || cols > INT32_MAX) call.fail("unsupported sizes");
}

}  // namespace

// Rows of partial sums, one of each of backward's rows of blocks: as many as there are blocks for, but no warp idle.
int64_t activation_partials(int64_t rows, int64_t cols) {
  const int64_t wanted = (rows + kWarps - 1) / kWarps;
  const int64_t column_blocks = (cols + kBlockColumns - 1) / kBlockColumns;
  return std::min(wanted, std::max<int64_t>(kBackwardBlocks / std::max<int64_t>(column_blocks, 1), 1));
}

void activation_forward(const ActivationForward& a, Activation activation, Dtype dtype, Launch launch) {
  const Call call(launch, "activation forward", {{"rows", a.rows}, {"columns", a.cols}});
  check_sizes(call, a.rows, a.cols);
  if (a.rows == 0 || a.cols == 0) return;
  const unsigned groups = blocks_for(std::min<int64_t>(a.rows, 1 << 20), kWarps * kForwardRows);
  const dim3 grid(blocks_for(a.cols, kBlockColumns), groups);
  with_activation(call, activation, [&](auto chosen) {
    constexpr Activation kActivation = decltype(chosen)::value;
    with_type(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      const bool vectors = aligned<T>(a.cols, a.y) && aligned<T>(a.cols, a.h);
      call.launch(vectors ? forward_kernel<T, kAlignedVector<T>, kActivation> : forward_kernel<T, 1, kActivation>, grid,
                  kThreads, 0, a);
    });
  });
}

void activation_backward(const ActivationBackward& a, Activation activation, Dtype dtype, Launch launch) {
  const Call call(launch, "activation backward", {{"rows", a.rows}, {"columns", a.cols}});
  check_sizes(call, a.rows, a.cols);
  if (a.cols == 0) return;
  const int64_t partials = activation_partials(a.rows, a.cols);
  const dim3 grid(blocks_for(a.cols, kBlockColumns), static_cast<unsigned>(partials));
  with_activation(call, activation, [&](auto chosen) {
    constexpr Activation kActivation = decltype(chosen)::value;
    with_type(dtype, [&](auto type) {
      using T = typename decltype(type)::type;
      if (partials == 0) return;
      const bool vectors = aligned<T>(a.cols, a.grad) && aligned<T>(a.cols, a.y) && aligned<T>(a.cols, a.h);
      call.launch(vectors ? backward_kernel<T, kAlignedVector<T>, kActivation> : backward_kernel<T, 1, kActivation>,
                  grid, kThreads, sizeof(Sums), a);
    });
  });
  column_sums(call, {a.partials,
                     partials,
                     a.cols,
                     a.grad_gates == nullptr ? 1 : 2,
                     {a.grad_bias, a.grad_gates},
                     {dtype, Dtype::float32}});
}

}  // namespace earlybert
