#include "optimizer_step.h"

#include <cmath>
#include <limits>

#include "launch.cuh"
#include "rows.cuh"

// The step is bound by memory. With trust ratios the norms of a tensor have to be known before any of it can change,
// so that it is gone through twice: 24 bytes a float32 number for the moments and norms, 16 to apply the update, which
// is computed anew; to store it in between would cost more than that. Without them 28 bytes are all.

namespace earlybert {
namespace {

constexpr int kThreads = 256;
// Numbers that a block goes through: a fixed count, so that sums have one order. The blocks of a tensor all add up its
// partial sums, which stay few against the numbers themselves.
constexpr int64_t kChunk = 16384;

struct Entry {
  OptimizerTensor tensor;
  int chunks;    // of this tensor and those before it
  bool aligned;  // to vectors, all four of its addresses
};

// What a launch knows, in its parameters: nothing is copied to the device, and a graph keeps it. Devices and drivers
// of all ages take 4 KiB of them.
constexpr int kTensors = 60;
struct Group {
  float beta1, one_minus_beta1, beta2, one_minus_beta2, log_beta1, log_beta2, eps, weight_decay, l1, lr,
      gradient_factor;
  const float *lr_at, *gradient_factor_at;
  float* partials;  // of the group's first chunk
  int count;
  Entry entries[kTensors];
};
static_assert(sizeof(Group) <= 4096, "what a kernel takes as parameters");

// The block's share of a tensor.
struct Chunk {
  int tensor, first, last;  // the tensor, and the numbers of its chunks
  int64_t begin;            // the chunk's first number in the tensor
  int count;
};

__device__ __forceinline__ Chunk find(const Group& group, int number) {
  int low = 0, high = group.count - 1;  // the first tensor that ends behind the chunk
  while (low < high) {
    const int middle = (low + high) / 2;
    if (group.entries[middle].chunks > number) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  Chunk chunk;
  chunk.tensor = low;
  chunk.first = low == 0 ? 0 : group.entries[low - 1].chunks;
  chunk.last = group.entries[low].chunks;
  chunk.begin = (number - chunk.first) * kChunk;
  const int64_t left = group.entries[low].tensor.size - chunk.begin;
  chunk.count = static_cast<int>(left < kChunk ? left : kChunk);
  return chunk;
}

// What undoes the moments' bias towards 0: m_hat = m * scale, sqrt(v_hat) = sqrt(v) * sqrt_scale.
struct Scales {
  float m, sqrt_v;
};

__device__ __forceinline__ Scales scales(const Group& group, const OptimizerTensor& tensor) {
  const float step = tensor.step_at == nullptr ? tensor.step : *tensor.step_at;
  // expm1, because little is left of 1 - 0.999 after rounding.
  return {1.0f / -expm1f(step * group.log_beta1), 1.0f / sqrtf(-expm1f(step * group.log_beta2))};
}

__device__ __forceinline__ float update(const Group& group, Scales scale, float p, float m, float v) {
  return m * scale.m / (sqrtf(v) * scale.sqrt_v + group.eps) + group.weight_decay * p;
}

__device__ __forceinline__ float learning_rate(const Group& group) {
  return group.lr_at == nullptr ? group.lr : *group.lr_at;
}

__device__ __forceinline__ float gradient_factor(const Group& group) {
  return group.gradient_factor_at == nullptr ? group.gradient_factor : *group.gradient_factor_at;
}

// The new moments of a chunk; and its share of the norms' squares, or without kAdapt the update.
template <typename P, typename G, bool kAdapt>
__global__ void __launch_bounds__(kThreads) advance_kernel(const __grid_constant__ Group group) {
  const int number = static_cast<int>(blockIdx.x);
  const Chunk chunk = find(group, number);
  const Entry& entry = group.entries[chunk.tensor];
  const OptimizerTensor& tensor = entry.tensor;
  P* parameter = static_cast<P*>(tensor.parameter) + chunk.begin;
  const G* gradient = static_cast<const G*>(tensor.gradient) + chunk.begin;
  float *exp_avg = tensor.exp_avg + chunk.begin, *exp_avg_sq = tensor.exp_avg_sq + chunk.begin;
  const Scales scale = scales(group, tensor);
  const float rate = learning_rate(group), factor = gradient_factor(group);

  float parameter_squares = 0.0f, update_squares = 0.0f;
  for (int i = static_cast<int>(threadIdx.x) * kVector; i < chunk.count; i += kThreads * kVector) {
    const bool whole = entry.aligned && i + kVector <= chunk.count;
    float p[kVector], g[kVector], m[kVector], v[kVector];
    load(parameter, i, chunk.count, whole, p);
    load(gradient, i, chunk.count, whole, g);
    load(exp_avg, i, chunk.count, whole, m);
    load(exp_avg_sq, i, chunk.count, whole, v);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      g[j] = g[j] * factor + (p[j] > 0.0f ? group.l1 : p[j] < 0.0f ? -group.l1 : 0.0f);
      m[j] = m[j] * group.beta1 + g[j] * group.one_minus_beta1;
      v[j] = v[j] * group.beta2 + g[j] * g[j] * group.one_minus_beta2;
      const float u = update(group, scale, p[j], m[j], v[j]);  // 0 beyond the chunk's end, where all are 0
      if constexpr (kAdapt) {
        parameter_squares += p[j] * p[j];
        update_squares += u * u;
      } else {
        p[j] -= rate * u;
      }
    }
    store(exp_avg, i, chunk.count, whole, m);
    store(exp_avg_sq, i, chunk.count, whole, v);
    if constexpr (!kAdapt) store(parameter, i, chunk.count, whole, p);
  }
  if constexpr (kAdapt) {
    float* scratch = shared_memory<float[kThreads / 32]>();
    parameter_squares = row_sum<kThreads>(parameter_squares, scratch);
    update_squares = row_sum<kThreads>(update_squares, scratch);
    if (threadIdx.x == 0) {
      store_result(group.partials + 2 * number, parameter_squares);
      store_result(group.partials + 2 * number + 1, update_squares);
    }
  }
}

// parameter -= lr * |parameter| / |update| * update, the ratio being 1 where one of the norms is 0.
template <typename P>
__global__ void __launch_bounds__(kThreads) apply_kernel(const __grid_constant__ Group group) {
  float* scratch = shared_memory<float[kThreads / 32]>();
  // Backwards: the last chunks are what the cache still holds.
  const Chunk chunk = find(group, static_cast<int>(gridDim.x - 1 - blockIdx.x));
  const Entry& entry = group.entries[chunk.tensor];
  const OptimizerTensor& tensor = entry.tensor;

  float parameter_squares = 0.0f, update_squares = 0.0f;
  for (int i = chunk.first + static_cast<int>(threadIdx.x); i < chunk.last; i += kThreads) {
    parameter_squares += group.partials[2 * i];
    update_squares += group.partials[2 * i + 1];
  }
  const float parameter_norm = sqrtf(row_sum<kThreads>(parameter_squares, scratch));
  const float update_norm = sqrtf(row_sum<kThreads>(update_squares, scratch));
  float rate = learning_rate(group);
  if (parameter_norm > 0.0f && update_norm > 0.0f) rate *= parameter_norm / update_norm;

  P* parameter = static_cast<P*>(tensor.parameter) + chunk.begin;
  const float *exp_avg = tensor.exp_avg + chunk.begin, *exp_avg_sq = tensor.exp_avg_sq + chunk.begin;
  const Scales scale = scales(group, tensor);
  for (int i = static_cast<int>(threadIdx.x) * kVector; i < chunk.count; i += kThreads * kVector) {
    const bool whole = entry.aligned && i + kVector <= chunk.count;
    float p[kVector], m[kVector], v[kVector];
    load(parameter, i, chunk.count, whole, p);
    load(exp_avg, i, chunk.count, whole, m);
    load(exp_avg_sq, i, chunk.count, whole, v);
#pragma unroll
    for (int j = 0; j < kVector; ++j) p[j] -= rate * update(group, scale, p[j], m[j], v[j]);
    store(parameter, i, chunk.count, whole, p);
  }
}

template <typename P, typename G>
void step_group(const Call& call, const Group& group, bool adapt) {
  const int chunks = group.entries[group.count - 1].chunks;
  if (chunks == 0) return;
  if (adapt) {
    call.launch(advance_kernel<P, G, true>, chunks, kThreads, sizeof(float[kThreads / 32]), group);
    call.launch(apply_kernel<P>, chunks, kThreads, sizeof(float[kThreads / 32]), group);
  } else {
    call.launch(advance_kernel<P, G, false>, chunks, kThreads, 0, group);
  }
}

// Calls `body` with the C++ types of the dtypes, as `body(Type<P>{}, Type<G>{})`.
template <typename Body>
void with_types(const Call& call, OptimizerDtypes dtypes, Body body) {
  const bool gradient32 = dtypes.gradient == Dtype::float32;
  if (!gradient32 && dtypes.gradient != dtypes.parameter) call.fail("unsupported combination of dtypes");
  with_type(dtypes.parameter, [&](auto parameter) {
    if (gradient32) {
      body(parameter, Type<float>{});
    } else {
      body(parameter, parameter);
    }
  });
}

}  // namespace

int64_t optimizer_step_chunks(int64_t size) { return (size + kChunk - 1) / kChunk; }

void optimizer_step(const OptimizerStep& a, OptimizerDtypes dtypes, Launch launch) {
  const Call call(launch, "optimizer_step", {{"tensors", a.count}});
  const auto narrow = [](double x) { return static_cast<float>(x); };
  Group group = {};
  group.beta1 = narrow(a.beta1);
  group.one_minus_beta1 = narrow(1.0 - a.beta1);
  group.beta2 = narrow(a.beta2);
  group.one_minus_beta2 = narrow(1.0 - a.beta2);
  group.log_beta1 = narrow(std::log(a.beta1));  // of 0 that is minus infinity, and no bias is left after a step
  group.log_beta2 = narrow(std::log(a.beta2));
  group.eps = narrow(a.eps);
  group.weight_decay = narrow(a.weight_decay);
  group.l1 = narrow(a.l1);
  group.lr = narrow(a.lr);
  group.lr_at = a.lr_at;
  group.gradient_factor = narrow(a.gradient_factor);
  group.gradient_factor_at = a.gradient_factor_at;
  group.partials = a.partials;
  with_types(call, dtypes, [&](auto parameter, auto gradient) {
    using P = typename decltype(parameter)::type;
    using G = typename decltype(gradient)::type;
    for (int64_t i = 0; i < a.count; ++i) {
      const OptimizerTensor& tensor = a.tensors[i];
      const int64_t before = group.count == 0 ? 0 : group.entries[group.count - 1].chunks;
      const int64_t chunks = before + optimizer_step_chunks(tensor.size);
      if (chunks > std::numeric_limits<int>::max()) call.fail("too many numbers");
      const bool aligned = on_vector<P>(tensor.parameter) && on_vector<G>(tensor.gradient) &&
                           on_vector<float>(tensor.exp_avg) && on_vector<float>(tensor.exp_avg_sq);
      group.entries[group.count++] = {tensor, static_cast<int>(chunks), aligned};
      if (group.count < kTensors && i + 1 < a.count) continue;
      step_group<P, G>(call, group, a.adapt);
      if (a.adapt) group.partials += 2 * chunks;
      group.count = 0;
    }
  });
}

}  // namespace earlybert
