#include "padding.h"

#include <algorithm>

#include "launch.cuh"
#include "search.cuh"
#include "types.cuh"

namespace earlybert {
namespace {

constexpr int kBlock = 256;
constexpr int kMost = 16;  // tensors of one launch

// A tensor, and how threads go through it: 2^log_lanes of them to a row, in units of `unit` bytes.
struct Work {
  PaddingRows rows;
  int unit, log_lanes;
};

struct Works {
  PaddingPlaces places;
  Work of[kMost];
};

template <typename Unit>
__device__ __forceinline__ void copy_row(const void* from, void* to, int64_t bytes, int lane, int lanes) {
  const int64_t units = bytes / static_cast<int64_t>(sizeof(Unit));
  for (int64_t u = lane; u < units; u += lanes) {
    store_result(static_cast<Unit*>(to) + u, from == nullptr ? Unit{} : static_cast<const Unit*>(from)[u]);
  }
}

// One block row a tensor.
template <bool kUnpad>
__global__ void __launch_bounds__(kBlock) padding_kernel(const __grid_constant__ Works works) {
  const PaddingPlaces& places = works.places;
  const Work& work = works.of[blockIdx.y];
  const PaddingRows& rows = work.rows;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x;
  const int64_t row = thread >> work.log_lanes;
  const int64_t padded_rows = places.batch * places.seq;
  if (row >= (kUnpad ? places.tokens : padded_rows)) return;

  const char* from = nullptr;  // zeros
  if (kUnpad) {
    const int64_t place = places.index[row];
    if (place >= 0 && place < padded_rows) {
      from = static_cast<const char*>(rows.from) + place / places.seq * rows.batch_stride +
             place % places.seq * rows.seq_stride;
    }
  } else {
    const int64_t k = lower_bound(places.index, places.tokens, row);
    if (k < places.tokens && places.index[k] == row) from = static_cast<const char*>(rows.from) + k * rows.row_bytes;
  }
  char* to = static_cast<char*>(rows.to) + row * rows.row_bytes;
  const int lanes = 1 << work.log_lanes, lane = static_cast<int>(thread) & (lanes - 1);
  switch (work.unit) {
    case 16: return copy_row<uint4>(from, to, rows.row_bytes, lane, lanes);
    case 8: return copy_row<uint2>(from, to, rows.row_bytes, lane, lanes);
    case 4: return copy_row<uint32_t>(from, to, rows.row_bytes, lane, lanes);
    case 2: return copy_row<uint16_t>(from, to, rows.row_bytes, lane, lanes);
    default: return copy_row<uint8_t>(from, to, rows.row_bytes, lane, lanes);
  }
}

Work work_of(const PaddingRows& rows) {
  const auto bits = reinterpret_cast<std::uintptr_t>(rows.from) | reinterpret_cast<std::uintptr_t>(rows.to) |
                    static_cast<std::uintptr_t>(rows.row_bytes) | static_cast<std::uintptr_t>(rows.batch_stride) |
                    static_cast<std::uintptr_t>(rows.seq_stride);
  Work work = {rows, 16, 0};
  while (bits % static_cast<std::uintptr_t>(work.unit) != 0) work.unit /= 2;
  while (work.log_lanes < 5 && (work.unit << work.log_lanes) < rows.row_bytes) ++work.log_lanes;
  return work;
}

template <bool kUnpad>
void run(const char* op, const PaddingPlaces& places, const PaddingRows* tensors, int64_t count, Launch launch) {
  const Call call(launch, op, {{"batch", places.batch}, {"sequence", places.seq}, {"tokens", places.tokens}});
  const int64_t rows = kUnpad ? places.tokens : places.batch * places.seq;
  if (rows == 0) return;
  for (int64_t first = 0; first < count; first += kMost) {
    Works works = {places, {}};
    const int own = static_cast<int>(std::min<int64_t>(count - first, kMost));
    int log_lanes = 0;
    for (int i = 0; i < own; ++i) {
      works.of[i] = work_of(tensors[first + i]);
      log_lanes = std::max(log_lanes, works.of[i].log_lanes);
    }
    const dim3 grid(blocks_for(rows << log_lanes, kBlock), static_cast<unsigned>(own));
    call.launch(padding_kernel<kUnpad>, grid, kBlock, 0, works);
  }
}

}  // namespace

void unpad(const PaddingPlaces& places, const PaddingRows* tensors, int64_t count, Launch launch) {
  run<true>("unpad", places, tensors, count, launch);
}

void pad(const PaddingPlaces& places, const PaddingRows* tensors, int64_t count, Launch launch) {
  run<false>("pad", places, tensors, count, launch);
}

}  // namespace earlybert
