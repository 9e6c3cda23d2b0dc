#include "column_sums.cuh"

#include "types.cuh"

namespace earlybert {
namespace {

constexpr int kCols = 32, kRows = 32;  // of a block's threads
using Shared = float[kRows][kCols];

__global__ void __launch_bounds__(kCols* kRows) column_sums_kernel(const ColumnSums a) {
  auto& shared = shared_memory<Shared>();
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kCols + threadIdx.x;
  const float* matrix = a.matrices + blockIdx.y * a.rows * a.cols;
  float sum = 0.0f;
  if (col < a.cols) {
    for (int64_t row = threadIdx.y; row < a.rows; row += kRows) sum += matrix[row * a.cols + col];
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || col >= a.cols) return;
  for (int k = 1; k < kRows; ++k) sum += shared[k][threadIdx.x];
#pragma unroll
  for (int which = 0; which < ColumnSums::kMost; ++which) {  // a struct's array is indexed by constants, or it spills
    if (which != static_cast<int>(blockIdx.y)) continue;
    void* out = a.outs[which];
    switch (a.dtypes[which]) {
      case Dtype::float32: store_result(static_cast<float*>(out) + col, sum); break;
      case Dtype::float16: store_result(static_cast<__half*>(out) + col, from_float<__half>(sum)); break;
      case Dtype::bfloat16: store_result(static_cast<__nv_bfloat16*>(out) + col, from_float<__nv_bfloat16>(sum)); break;
    }
  }
}

}  // namespace

void column_sums(const Call& call, const ColumnSums& sums) {
  call.launch(column_sums_kernel, dim3(blocks_for(sums.cols, kCols), static_cast<unsigned>(sums.count)),
              dim3(kCols, kRows), sizeof(Shared), sums);
}

}  // namespace earlybert
