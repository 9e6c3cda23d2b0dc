#include "dropout_add_layer_norm.h"

#include "launch.cuh"
#include "rows.cuh"

namespace earlybert {
namespace {

// A row is shared by kThreads threads, each with kItems vectors in registers: a warp up to 1024 columns,
// which covers BERT and needs no barrier, and a block of 256 threads beyond.
//
// The backward kernel runs on at most kBackwardBlocks blocks, each of which writes one row of partial sums.
// That number is fixed rather than read from the device, so that results do not depend on the device's
// size; it is what an H100 holds at once, given the registers that each layout takes.
template <int kThreadsPerRow, int kItemsPerThread, int kMostBlocks>
struct Layout {
  static constexpr int kThreads = kThreadsPerRow, kItems = kItemsPerThread, kBackwardBlocks = kMostBlocks;
  static constexpr int kBlock = kThreads == 32 ? 128 : kThreads;
  static constexpr int kRows = kBlock / kThreads;  // rows in flight in a block
  static constexpr int kCols = kThreads * kItems * kVector;
};
using Small = Layout<32, 4, 528>;   // up to 512 columns
using Medium = Layout<32, 8, 264>;  // up to 1024
using Large = Layout<256, 8, 132>;  // up to 8192
static_assert(Large::kCols == kDropoutAddLayerNormMaxCols, "the launchers refuse what no layout holds");

constexpr int kScratch = Large::kBlock / 32;  // what row_sum needs

// The shared memory of backward, whose block has one row at a time or holds its sums here.
template <typename L>
struct BackwardShared {
  static constexpr int kSums = L::kRows > 1 ? L::kCols : 1;
  float scratch[kScratch], weight[kSums], bias[kSums];
};

template <typename X, typename R, typename P, typename L>
__global__ void __launch_bounds__(L::kBlock)
    forward_kernel(const DropoutAddLayerNormForward a, uint32_t threshold, float scale, bool aligned) {
  float* scratch = shared_memory<float[kScratch]>();
  const int lane = threadIdx.x % L::kThreads;
  const int cols = static_cast<int>(a.cols);
  const int64_t r = static_cast<int64_t>(blockIdx.x) * L::kRows + threadIdx.x / L::kThreads;
  if (r >= a.rows) return;  // whole warps, or (one row a block) nobody
  const X* x = static_cast<const X*>(a.x) + r * cols;
  const R* residual = static_cast<const R*>(a.residual) + r * cols;
  const uint64_t seed = a.seed == nullptr ? 0 : static_cast<uint64_t>(*a.seed);

  float h[L::kItems][kVector];
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < L::kItems; ++i) {
    const int col = (i * L::kThreads + lane) * kVector;
    float added[kVector];
    load(x, col, cols, aligned, added);
    load(residual, col, cols, aligned, h[i]);
    if (a.seed != nullptr && col < cols) {
      float scales[kVector];
      dropout_scales(seed, static_cast<uint64_t>(r * cols + col), threshold, scale, scales);
#pragma unroll
      for (int j = 0; j < kVector; ++j) added[j] *= scales[j];
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      h[i][j] += added[j];
      sum += h[i][j];
    }
  }
  const float mean = row_sum<L::kThreads>(sum, scratch) / static_cast<float>(cols);

  // A second pass, over registers, because mean(h^2) - mean(h)^2 cancels when the mean is large.
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < L::kItems; ++i) {
    const int col = (i * L::kThreads + lane) * kVector;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      h[i][j] -= mean;
      if (col + j < cols) squares += h[i][j] * h[i][j];
    }
  }
  const float variance = row_sum<L::kThreads>(squares, scratch) / static_cast<float>(cols);
  const float rstd = rsqrtf(variance + static_cast<float>(a.eps));

  R* out = static_cast<R*>(a.out) + r * cols;
#pragma unroll
  for (int i = 0; i < L::kItems; ++i) {
    const int col = (i * L::kThreads + lane) * kVector;
    float weight[kVector], bias[kVector];
    load(static_cast<const P*>(a.weight), col, cols, aligned, weight);
    load(static_cast<const P*>(a.bias), col, cols, aligned, bias);
#pragma unroll
    for (int j = 0; j < kVector; ++j) h[i][j] = h[i][j] * rstd * weight[j] + bias[j];
    store(out, col, cols, aligned, h[i]);
  }
  if (lane == 0) {
    store_result(a.mean + r, mean);
    store_result(a.rstd + r, rstd);
  }
}

// Each block walks over rows and keeps its share of grad_weight and grad_bias in registers until the end.
template <typename X, typename R, typename P, typename L>
__global__ void __launch_bounds__(L::kBlock)
    backward_kernel(const DropoutAddLayerNormBackward a, uint32_t threshold, float scale, bool aligned) {
  auto& shared = shared_memory<BackwardShared<L>>();
  float* scratch = shared.scratch;
  const int lane = threadIdx.x % L::kThreads, group = threadIdx.x / L::kThreads;
  const int cols = static_cast<int>(a.cols);
  const uint64_t seed = a.seed == nullptr ? 0 : static_cast<uint64_t>(*a.seed);

  float sum_weight[L::kItems][kVector] = {}, sum_bias[L::kItems][kVector] = {};
  const int64_t stride = static_cast<int64_t>(gridDim.x) * L::kRows;
  for (int64_t r = static_cast<int64_t>(blockIdx.x) * L::kRows + group; r < a.rows; r += stride) {
    const R* grad_out = static_cast<const R*>(a.grad_out) + r * cols;
    const X* x = static_cast<const X*>(a.x) + r * cols;
    const R* residual = static_cast<const R*>(a.residual) + r * cols;
    const float mean = a.mean[r], rstd = a.rstd[r];

    float normalised[L::kItems][kVector], grad[L::kItems][kVector];
    uint32_t kept = 0;  // one bit an element: cheaper than 32 factors, or than drawing them twice
    float sum = 0.0f, sum_normalised = 0.0f;
#pragma unroll
    for (int i = 0; i < L::kItems; ++i) {
      const int col = (i * L::kThreads + lane) * kVector;
      float added[kVector], weight[kVector];
      load(x, col, cols, aligned, added);
      load(residual, col, cols, aligned, normalised[i]);
      load(grad_out, col, cols, aligned, grad[i]);
      load(static_cast<const P*>(a.weight), col, cols, aligned, weight);
      if (a.seed != nullptr && col < cols) {
        float scales[kVector];
        dropout_scales(seed, static_cast<uint64_t>(r * cols + col), threshold, scale, scales);
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          added[j] *= scales[j];
          if (scales[j] != 0.0f) kept |= 1u << (i * kVector + j);
        }
      }
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        normalised[i][j] = (normalised[i][j] + added[j] - mean) * rstd;
        sum_weight[i][j] += grad[i][j] * normalised[i][j];  // beyond the row's end grad is 0
        sum_bias[i][j] += grad[i][j];
        grad[i][j] *= weight[j];
        sum += grad[i][j];
        sum_normalised += grad[i][j] * normalised[i][j];
      }
    }
    const float average = row_sum<L::kThreads>(sum, scratch) / static_cast<float>(cols);
    const float average_normalised = row_sum<L::kThreads>(sum_normalised, scratch) / static_cast<float>(cols);

    R* grad_residual = static_cast<R*>(a.grad_residual) + r * cols;
    X* grad_x = a.grad_x == nullptr ? nullptr : static_cast<X*>(a.grad_x) + r * cols;
#pragma unroll
    for (int i = 0; i < L::kItems; ++i) {
      const int col = (i * L::kThreads + lane) * kVector;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        grad[i][j] = rstd * (grad[i][j] - average - normalised[i][j] * average_normalised);
      }
      store(grad_residual, col, cols, aligned, grad[i]);
      if (grad_x != nullptr) {
        if (a.seed != nullptr) {
#pragma unroll
          for (int j = 0; j < kVector; ++j) grad[i][j] *= (kept >> (i * kVector + j)) & 1u ? scale : 0.0f;
        }
        store(grad_x, col, cols, aligned, grad[i]);
      }
    }
  }

  // The block's groups add up one after the other, which keeps the sums the same in every run.
  float* partial = a.partials + static_cast<int64_t>(blockIdx.x) * 2 * cols;
  for (int turn = 0; turn < L::kRows; ++turn) {
    if (group == turn) {
#pragma unroll
      for (int i = 0; i < L::kItems; ++i) {
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          const int col = (i * L::kThreads + lane) * kVector + j;
          if constexpr (L::kRows > 1) {
            sum_weight[i][j] += turn == 0 ? 0.0f : shared.weight[col];
            sum_bias[i][j] += turn == 0 ? 0.0f : shared.bias[col];
            shared.weight[col] = sum_weight[i][j];
            shared.bias[col] = sum_bias[i][j];
          }
          if (turn == L::kRows - 1 && col < cols) {
            store_result(partial + col, sum_weight[i][j]);
            store_result(partial + cols + col, sum_bias[i][j]);
          }
        }
      }
    }
    __syncthreads();
  }
}

constexpr int kReduceCols = 32, kReduceRows = 32;
using ReduceShared = float[kReduceRows][kReduceCols];

// grad_weight (blockIdx.y = 0) and grad_bias (1): the column sums of the partial rows.
template <typename P>
__global__ void __launch_bounds__(kReduceCols* kReduceRows)
    reduce_kernel(const float* partials, int64_t count, int cols, P* grad_weight, P* grad_bias) {
  auto& sums = shared_memory<ReduceShared>();
  const int col = blockIdx.x * kReduceCols + threadIdx.x;
  float sum = 0.0f;
  if (col < cols) {
    for (int64_t k = threadIdx.y; k < count; k += kReduceRows) {
      sum += partials[(2 * k + blockIdx.y) * cols + col];
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || col >= cols) return;
  for (int k = 1; k < kReduceRows; ++k) sum += sums[k][threadIdx.x];
  store_result((blockIdx.y == 0 ? grad_weight : grad_bias) + col, from_float<P>(sum));
}

// Calls `body` with the layout for a row's width, as `body(Layout{})`.
template <typename Body>
void with_layout(int64_t cols, Body body) {
  if (cols <= Small::kCols) {
    body(Small{});
  } else if (cols <= Medium::kCols) {
    body(Medium{});
  } else {
    body(Large{});
  }
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

float kept_scale(double p) { return static_cast<float>(1.0 / (1.0 - p)); }

}  // namespace

int64_t dropout_add_layer_norm_partials(int64_t rows, int64_t cols) {
  int64_t partials = 0;
  with_layout(cols, [&](auto layout) {
    using L = decltype(layout);
    const int64_t blocks = (rows + L::kRows - 1) / L::kRows;
    partials = blocks < L::kBackwardBlocks ? blocks : L::kBackwardBlocks;
  });
  return partials;
}

void dropout_add_layer_norm_forward(const DropoutAddLayerNormForward& a, DropoutAddLayerNormDtypes dtypes,
                                    Launch launch) {
  const Call call(launch, "dropout_add_layer_norm forward", {{"rows", a.rows}, {"columns", a.cols}});
  if (a.cols < 1 || a.cols > kDropoutAddLayerNormMaxCols) call.fail("unsupported width");
  if (a.rows == 0) return;
  with_types(call, dtypes, [&](auto x, auto residual, auto weight) {
    using X = typename decltype(x)::type;
    using R = typename decltype(residual)::type;
    using P = typename decltype(weight)::type;
    const bool aligned = a.cols % kVector == 0 && on_vector<X>(a.x) && on_vector<R>(a.residual) &&
                         on_vector<R>(a.out) && on_vector<P>(a.weight) && on_vector<P>(a.bias);
    with_layout(a.cols, [&](auto layout) {
      using L = decltype(layout);
      call.launch(forward_kernel<X, R, P, L>, blocks_for(a.rows, L::kRows), L::kBlock, sizeof(float[kScratch]), a,
                  dropout_threshold(a.dropout_p), kept_scale(a.dropout_p), aligned);
    });
  });
}

void dropout_add_layer_norm_backward(const DropoutAddLayerNormBackward& a, DropoutAddLayerNormDtypes dtypes,
                                     Launch launch) {
  const Call call(launch, "dropout_add_layer_norm backward", {{"rows", a.rows}, {"columns", a.cols}});
  if (a.cols < 1 || a.cols > kDropoutAddLayerNormMaxCols) call.fail("unsupported width");
  const int64_t partials = dropout_add_layer_norm_partials(a.rows, a.cols);
  with_types(call, dtypes, [&](auto x, auto residual, auto weight) {
    using X = typename decltype(x)::type;
    using R = typename decltype(residual)::type;
    using P = typename decltype(weight)::type;
    const bool aligned = a.cols % kVector == 0 && on_vector<R>(a.grad_out) && on_vector<X>(a.x) &&
                         on_vector<R>(a.residual) && on_vector<P>(a.weight) && on_vector<X>(a.grad_x) &&
                         on_vector<R>(a.grad_residual);
    if (partials > 0) {
      with_layout(a.cols, [&](auto layout) {
        using L = decltype(layout);
        call.launch(backward_kernel<X, R, P, L>, static_cast<unsigned>(partials), L::kBlock,
                    sizeof(BackwardShared<L>), a, dropout_threshold(a.dropout_p), kept_scale(a.dropout_p), aligned);
      });
    }
    call.launch(reduce_kernel<P>, dim3(blocks_for(a.cols, kReduceCols), 2), dim3(kReduceCols, kReduceRows),
                sizeof(ReduceShared), a.partials, partials, static_cast<int>(a.cols), static_cast<P*>(a.grad_weight),
                static_cast<P*>(a.grad_bias));
  });
}

}  // namespace earlybert
