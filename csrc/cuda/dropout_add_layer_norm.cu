#include "dropout_add_layer_norm.h"

#include <type_traits>

#include "column_sums.cuh"
#include "layer_norm.cuh"

namespace earlybert {
namespace {

template <typename X, typename R, typename P, typename L>
__global__ void __launch_bounds__(L::kBlock, L::kForwardResident)
    forward_kernel(const DropoutAddLayerNormForward a, Dropout dropout) {
  float* scratch = shared_memory<Scratch>();
  const int lane = threadIdx.x % L::kThreads;
  const int cols = static_cast<int>(a.cols);
  const int64_t r = static_cast<int64_t>(blockIdx.x) * L::kRows + threadIdx.x / L::kThreads;
  if (r >= a.rows) return;  // whole warps, or (one row a block) nobody
  const RawPart<X, L> x(static_cast<const X*>(a.x) + r * cols, lane, cols);
  const RawPart<R, L> residual(static_cast<const R*>(a.residual) + r * cols, lane, cols);
  const uint32_t kept = kept_of_part<L>(dropout, r, lane, cols);
  Part<L> h;
#pragma unroll
  for (int i = 0; i < L::kItems; ++i) {
#pragma unroll
    for (int j = 0; j < L::kWidth; ++j) {
      h[i][j] = residual.at(i, j) + x.at(i, j) * dropout_factor<L>(dropout, kept, i, j);
    }
  }
  const Statistics statistics = normalise<L>(h, lane, cols, static_cast<float>(a.eps), scratch);

  R* out = static_cast<R*>(a.out) + r * cols;
#pragma unroll
  for (int i = 0; i < L::kItems; ++i) {
    float weight[L::kWidth], bias[L::kWidth];
    load_item<L>(static_cast<const P*>(a.weight), i, lane, cols, weight);
    load_item<L>(static_cast<const P*>(a.bias), i, lane, cols, bias);
#pragma unroll
    for (int j = 0; j < L::kWidth; ++j) h[i][j] = h[i][j] * weight[j] + bias[j];
    store_item<L>(out, i, lane, cols, h[i]);
    if constexpr (!std::is_same_v<X, R>) {
      X* cast = static_cast<X*>(a.out_cast);
      if (cast != nullptr) store_item<L>(cast + r * cols, i, lane, cols, h[i]);
    }
  }
  if (lane == 0 && a.mean != nullptr) {
    store_result(a.mean + r, statistics.mean);
    store_result(a.rstd + r, statistics.rstd);
  }
}

enum { kWeight, kBias, kX, kSums };  // what is summed over the rows

// Each block walks over rows and keeps its share of the sums until the end.
template <typename X, typename R, typename P, typename L>
__global__ void __launch_bounds__(L::kBlock, L::kResident)
    backward_kernel(const DropoutAddLayerNormBackward a, Dropout dropout) {
  auto& shared = shared_memory<BackwardShared<L, kSums>>();
  const int lane = threadIdx.x % L::kThreads, group = threadIdx.x / L::kThreads;
  const int cols = static_cast<int>(a.cols);

  clear_sums(shared, group, lane);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * L::kRows;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * L::kRows + group; r < a.rows; r += stride) {
    const RawPart<X, L> x(static_cast<const X*>(a.x) + r * cols, lane, cols);
    const RawPart<R, L> residual(static_cast<const R*>(a.residual) + r * cols, lane, cols);
    const RawPart<R, L> grad_out(static_cast<const R*>(a.grad_out) + r * cols, lane, cols);
    const float mean = a.mean[r], rstd = a.rstd[r];
    const uint32_t kept = kept_of_part<L>(dropout, r, lane, cols);
    Part<L> normalised, grad;
#pragma unroll
    for (int i = 0; i < L::kItems; ++i) {
      float added_to[L::kWidth], products[L::kWidth];
#pragma unroll
      for (int j = 0; j < L::kWidth; ++j) {
        added_to[j] = residual.at(i, j);
        const float h = added_to[j] + x.at(i, j) * dropout_factor<L>(dropout, kept, i, j);
        normalised[i][j] = (h - mean) * rstd;
        grad[i][j] = grad_out.at(i, j);
        products[j] = grad[i][j] * normalised[i][j];
      }
      if constexpr (!std::is_same_v<X, R>) {
        X* cast = static_cast<X*>(a.residual_cast);
        if (cast != nullptr) store_item<L>(cast + r * cols, i, lane, cols, added_to);
      }
      add_to_sums(shared, kWeight, group, i, lane, products);
      add_to_sums(shared, kBias, group, i, lane, grad[i]);
    }
    input_gradient<L>(grad, normalised, static_cast<const P*>(a.weight), rstd, lane, cols, shared.scratch);

    R* grad_residual = static_cast<R*>(a.grad_residual) + r * cols;
    X* grad_x = a.grad_x == nullptr ? nullptr : static_cast<X*>(a.grad_x) + r * cols;
#pragma unroll
    for (int i = 0; i < L::kItems; ++i) {
      store_item<L>(grad_residual, i, lane, cols, grad[i]);
#pragma unroll
      for (int j = 0; j < L::kWidth; ++j) grad[i][j] *= dropout_factor<L>(dropout, kept, i, j);
      add_to_sums(shared, kX, group, i, lane, grad[i]);
      if (grad_x != nullptr) store_item<L>(grad_x, i, lane, cols, grad[i]);
    }
  }
  store_partials(shared, cols, a.partials);
}

// Calls `body` with the C++ types of the dtypes, as `body(Type<X>{}, Type<R>{}, Type<P>{})`.
template <typename Body>
void with_types(const Call& call, DropoutAddLayerNormDtypes dtypes, Body body) {
  using F = Type<float>;
  const bool residual32 = dtypes.residual == Dtype::float32, weight32 = dtypes.weight == Dtype::float32;
  const bool known = (residual32 || dtypes.residual == dtypes.x) && (weight32 || dtypes.weight == dtypes.residual);
  if (!known) call.fail("unsupported combination of dtypes");
  if (dtypes.x == Dtype::float32) {
    body(F{}, F{}, F{});
    return;
  }
  with_half_type(dtypes.x, [&](auto half) {
    if (!weight32) {
      body(half, half, half);
    } else if (!residual32) {
      body(half, half, F{});
    } else {
      body(half, F{}, F{});
    }
  });
}

}  // namespace

void dropout_add_layer_norm_forward(const DropoutAddLayerNormForward& a, DropoutAddLayerNormDtypes dtypes,
                                    Launch launch) {
  const Call call(launch, "dropout_add_layer_norm forward", {{"rows", a.rows}, {"columns", a.cols}});
  if (a.cols < 1 || a.cols > kLayerNormMaxCols) call.fail("unsupported width");
  if (a.rows == 0) return;
  with_types(call, dtypes, [&](auto x, auto residual, auto weight) {
    using X = typename decltype(x)::type;
    using R = typename decltype(residual)::type;
    using P = typename decltype(weight)::type;
    const bool aligned = on_16_bytes(a.x, a.residual, a.out, a.out_cast, a.weight, a.bias);
    with_layout<sizeof(R)>(a.cols, aligned, [&](auto layout) {
      using L = decltype(layout);
      call.launch(forward_kernel<X, R, P, L>, blocks_for(a.rows, L::kRows), L::kBlock, sizeof(Scratch), a,
                  dropout_of(a.seed, a.dropout_p));
    });
  });
}

void dropout_add_layer_norm_backward(const DropoutAddLayerNormBackward& a, DropoutAddLayerNormDtypes dtypes,
                                     Launch launch) {
  const Call call(launch, "dropout_add_layer_norm backward", {{"rows", a.rows}, {"columns", a.cols}});
  if (a.cols < 1 || a.cols > kLayerNormMaxCols) call.fail("unsupported width");
  const int64_t partials = layer_norm_partials(a.rows, a.cols);
  with_types(call, dtypes, [&](auto x, auto residual, auto weight) {
    using X = typename decltype(x)::type;
    using R = typename decltype(residual)::type;
    using P = typename decltype(weight)::type;
    if (partials == 0) return;
    const bool aligned = on_16_bytes(a.grad_out, a.x, a.residual, a.weight, a.grad_x, a.grad_residual, a.residual_cast);
    with_layout<sizeof(R)>(a.cols, aligned, [&](auto layout) {
      using L = decltype(layout);
      call.launch(backward_kernel<X, R, P, L>, static_cast<unsigned>(partials), L::kBlock,
                  sizeof(BackwardShared<L, kSums>), a, dropout_of(a.seed, a.dropout_p));
    });
  });
  column_sums(call, {a.partials,
                     partials,
                     a.cols,
                     kSums,
                     {a.grad_weight, a.grad_bias, a.grad_x_columns},
                     {dtypes.weight, dtypes.weight, dtypes.x}});
}

}  // namespace earlybert
