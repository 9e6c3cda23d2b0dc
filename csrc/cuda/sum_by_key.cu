#include "sum_by_key.h"

#include <limits>

#include "launch.cuh"
#include "rows.cuh"
#include "search.cuh"

namespace earlybert {
namespace {

constexpr int kBlock = 256, kWarps = kBlock / 32;
constexpr int kRows = 32, kCols = 32 * kVector;  // of the result, a block's
// A row with more summands is the work of the whole block: the ids of words are distributed like Zipf's law, and a few
// of them (a batch's separators, its masks) have hundreds.
constexpr int kAlone = 32;

struct Shared {
  int begin[kRows + 1];  // where the summands of each row begin
  float sums[kWarps][32][kVector];
};

// Adds up every `step`-th of the summands `begin` to `end`, in order.
template <typename T>
__device__ __forceinline__ void add_up(const SumByKey& a, int begin, int end, int step, int col, bool aligned,
                                       float (&sum)[kVector]) {
  const T* values = static_cast<const T*>(a.values);
#pragma unroll 4
  for (int k = begin; k < end; k += step) {
    float own[kVector];
    load(values + a.order[k] * a.cols, col, static_cast<int>(a.cols), aligned, own);
#pragma unroll
    for (int j = 0; j < kVector; ++j) sum[j] += own[j];
  }
}

template <typename T, typename O>
__global__ void __launch_bounds__(kBlock) sum_by_key_kernel(const SumByKey a, bool aligned) {
  auto& shared = shared_memory<Shared>();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int cols = static_cast<int>(a.cols), col = blockIdx.y * kCols + lane * kVector;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kRows;
  const int rows = static_cast<int>(min(a.rows - first, static_cast<int64_t>(kRows)));
  if (threadIdx.x <= kRows) {
    shared.begin[threadIdx.x] = static_cast<int>(lower_bound(a.keys, a.count, first + threadIdx.x));
  }
  __syncthreads();

  O* out = static_cast<O*>(a.out) + first * cols;
  for (int row = warp; row < rows; row += kWarps) {
    const int begin = shared.begin[row], end = shared.begin[row + 1];
    if (end - begin > kAlone) continue;
    float sum[kVector] = {};
    add_up<T>(a, begin, end, 1, col, aligned, sum);
    store(out + static_cast<int64_t>(row) * cols, col, cols, aligned, sum);
  }
  for (int row = 0; row < rows; ++row) {
    const int begin = shared.begin[row], end = shared.begin[row + 1];
    if (end - begin <= kAlone) continue;
    float sum[kVector] = {};
    add_up<T>(a, begin + warp, end, kWarps, col, aligned, sum);
    for (int j = 0; j < kVector; ++j) shared.sums[warp][lane][j] = sum[j];
    __syncthreads();
    if (warp == 0) {
      for (int other = 1; other < kWarps; ++other) {
        for (int j = 0; j < kVector; ++j) sum[j] += shared.sums[other][lane][j];
      }
      store(out + static_cast<int64_t>(row) * cols, col, cols, aligned, sum);
    }
    __syncthreads();  // before the next row's sums
  }
}

}  // namespace

void sum_by_key(const SumByKey& a, Dtype values, Dtype out, Launch launch) {
  const Call call(launch, "sum_by_key", {{"values", a.count}, {"columns", a.cols}, {"rows", a.rows}});
  if (a.count > std::numeric_limits<int32_t>::max()) call.fail("values are not to be counted in 32 bits");
  if (out != values && out != Dtype::float32) call.fail("unsupported combination of dtypes");
  if (a.rows == 0) return;
  const dim3 grid(blocks_for(a.rows, kRows), blocks_for(a.cols, kCols));
  with_type(values, [&](auto value) {
    using T = typename decltype(value)::type;
    const auto run = [&](auto result) {
      using O = typename decltype(result)::type;
      const bool aligned = a.cols % kVector == 0 && on_vector<T>(a.values) && on_vector<O>(a.out);
      call.launch(sum_by_key_kernel<T, O>, grid, kBlock, sizeof(Shared), a, aligned);
    };
    if (out == values) {
      run(value);
    } else {
      run(Type<float>{});
    }
  });
}

}  // namespace earlybert
