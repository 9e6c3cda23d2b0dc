#include "ticket_distance.h"

#include "launch.cuh"
#include "types.cuh"

namespace earlybert {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAll = 0xFFFFFFFFu;

struct Counts {
  int64_t differing[kWarps], kept[kWarps];
};

__device__ __forceinline__ int64_t warp_sum(int64_t v) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(kAll, v, distance);
  return v;
}

// One block: a BERT has some ten thousand units.
__global__ void __launch_bounds__(kThreads) distance_kernel(const TicketDistance a) {
  auto& shared = shared_memory<Counts>();
  int64_t differing = 0, kept = 0;
  for (int64_t i = threadIdx.x; i < a.units; i += kThreads) {
    differing += a.a[i] ^ a.b[i];
    kept += a.a[i] + a.b[i];
  }
  differing = warp_sum(differing);
  kept = warp_sum(kept);
  if (threadIdx.x % 32 == 0) {
    shared.differing[threadIdx.x / 32] = differing;
    shared.kept[threadIdx.x / 32] = kept;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  differing = warp_sum(shared.differing[threadIdx.x]);
  kept = warp_sum(shared.kept[threadIdx.x]);
  if (threadIdx.x != 0) return;
  store_result(a.distance, kept == 0 ? 0.0 : static_cast<double>(differing) / static_cast<double>(kept));
}

}  // namespace

void ticket_distance(const TicketDistance& a, Launch launch) {
  const Call call(launch, "ticket_distance", {{"units", a.units}});
  call.launch(distance_kernel, 1, kThreads, sizeof(Counts), a);
}

}  // namespace earlybert
