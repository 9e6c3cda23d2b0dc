#include "ticket_masks.h"

#include <limits>

#include "launch.cuh"
#include "types.cuh"

// The k largest keys are found digit by digit, from the highest: how many keys have which digit says where the k-th is.
// Counting is in integers, so that its order does not matter.

namespace earlybert {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAll = 0xFFFFFFFFu;
constexpr int kDigits = 256;

struct Layer {
  const float* scores;
  int units, first;  // its units, and the number of the first of them in the mask
};

struct Layers {
  int count;
  Layer layers[kTicketMaxLayers];
};

// How many units each layer keeps: in device memory, or as the host knows it.
struct Widths {
  const int* at;
  int known[kTicketMaxLayers];
};

// Ordered as |score|: floats without a sign have the order of their bits.
__device__ __forceinline__ uint32_t key_of(float score) {
  const uint32_t bits = __float_as_uint(score) & 0x7FFFFFFFu;
  return bits > 0x7F800000u ? 0xFFFFFFFFu : bits;  // one NaN is as good as another
}

__device__ __forceinline__ int warp_sum(int v) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(kAll, v, distance);
  return v;
}

struct SelectShared {
  int histogram[kDigits];
  uint32_t digit;
  int wanted;
};

// The largest keys are those above `key`, and of those equal to it the first `ties`.
struct Selection {
  uint32_t key;
  int ties;
};

// The digit of the key that is number `wanted` from the largest, and its number among the keys of that digit. By a
// warp.
__device__ __forceinline__ void pick_digit(int wanted, SelectShared& shared) {
  constexpr int kOwn = kDigits / 32;
  const int highest = kDigits - 1 - kOwn * static_cast<int>(threadIdx.x);  // of the lane's digits
  int own = 0;
  for (int i = 0; i < kOwn; ++i) own += shared.histogram[highest - i];
  int upto = own;  // keys of this lane's digits and of higher ones
  for (int distance = 1; distance < 32; distance *= 2) {
    const int higher = __shfl_up_sync(kAll, upto, distance);
    if (static_cast<int>(threadIdx.x) >= distance) upto += higher;
  }
  int before = upto - own;
  if (before >= wanted || upto < wanted) return;
  int digit = highest;
  while (before + shared.histogram[digit] < wanted) before += shared.histogram[digit--];
  shared.digit = static_cast<uint32_t>(digit);
  shared.wanted = wanted - before;
}

// The `wanted` largest keys of layers `begin` to `end`, but for unit `skipped[layer]` of each where that is not null.
// By the whole block; `wanted` is at least 1 and at most the number of keys.
__device__ __forceinline__ Selection select(const Layers& all, int begin, int end, const int* skipped, int wanted,
                                            SelectShared& shared) {
  const int lane = threadIdx.x % 32;
  uint32_t prefix = 0;  // the digits found so far
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < kDigits) shared.histogram[threadIdx.x] = 0;
    __syncthreads();
    for (int l = begin; l < end; ++l) {
      const Layer& layer = all.layers[l];
      const int skip = skipped == nullptr ? -1 : skipped[l];
      for (int start = static_cast<int>(threadIdx.x) - lane; start < layer.units; start += kThreads) {
        const int unit = start + lane;
        bool counts = unit < layer.units && unit != skip;
        const uint32_t key = counts ? key_of(layer.scores[unit]) : 0u;
        counts = counts && (shift == 24 || key >> (shift + 8) == prefix);
        const uint32_t digit = counts ? key >> shift & 0xFFu : kDigits;
        // Gates are close to 1 and share their first digits: one addition for all lanes of a digit.
        const unsigned peers = __match_any_sync(kAll, digit);
        if (counts && lane == __ffs(static_cast<int>(peers)) - 1) atomicAdd(&shared.histogram[digit], __popc(peers));
      }
    }
    __syncthreads();
    if (threadIdx.x < 32) pick_digit(wanted, shared);
    __syncthreads();
    prefix = prefix << 8 | shared.digit;
    wanted = shared.wanted;
  }
  return {prefix, wanted};
}

struct WidthsShared {
  SelectShared select;
  int best[kTicketMaxLayers];                               // the unit of each layer that stays whatever it is worth
  int above[kTicketMaxLayers], equal[kTicketMaxLayers];  // its other units: above the selected key, and equal to it
  int width[kTicketMaxLayers], blocks[kTicketMaxLayers];
};

// Widths as multiples of `multiple_of`: blocks by largest remainder. By one thread.
__device__ void round_widths(const Layers& all, int multiple_of, WidthsShared& shared) {
  int kept = 0, sum = 0, most = 0;
  for (int l = 0; l < all.count; ++l) {
    shared.blocks[l] = max(1, shared.width[l] / multiple_of);
    kept += shared.width[l];
    sum += shared.blocks[l];
    most += all.layers[l].units / multiple_of;
  }
  const int target = min(max((2 * kept + multiple_of) / (2 * multiple_of), all.count), most);
  const auto remainder = [&](int l) { return shared.width[l] - shared.blocks[l] * multiple_of; };
  for (; sum < target; ++sum) {  // the lower layer is served first ...
    int chosen = -1;
    for (int l = 0; l < all.count; ++l) {
      if (shared.blocks[l] == all.layers[l].units / multiple_of) continue;
      if (chosen < 0 || remainder(l) > remainder(chosen)) chosen = l;
    }
    ++shared.blocks[chosen];
  }
  for (; sum > target; --sum) {  // ... and pays last
    int chosen = -1;
    for (int l = 0; l < all.count; ++l) {
      if (shared.blocks[l] == 1) continue;
      if (chosen < 0 || remainder(l) <= remainder(chosen)) chosen = l;
    }
    --shared.blocks[chosen];
  }
  for (int l = 0; l < all.count; ++l) shared.width[l] = shared.blocks[l] * multiple_of;
}

// How many units each layer keeps when all of them compete for `keep` places. One block.
__global__ void __launch_bounds__(kThreads)
    widths_kernel(const __grid_constant__ Layers all, int keep, int multiple_of, int* widths) {
  auto& shared = shared_memory<WidthsShared>();
  const int lane = threadIdx.x % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int l = warp; l < all.count; l += kWarps) {
    const Layer& layer = all.layers[l];
    uint32_t key = 0;
    int unit = -1;
    for (int i = lane; i < layer.units; i += 32) {
      const uint32_t other = key_of(layer.scores[i]);
      if (unit < 0 || other > key) key = other, unit = i;
    }
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      const uint32_t other_key = __shfl_xor_sync(kAll, key, distance);
      const int other = __shfl_xor_sync(kAll, unit, distance);
      if (other < 0) continue;
      if (unit < 0 || other_key > key || (other_key == key && other < unit)) key = other_key, unit = other;
    }
    if (lane == 0) shared.best[l] = unit;
  }
  __syncthreads();

  const int left = keep - all.count;
  Selection selection = {};
  if (left > 0) selection = select(all, 0, all.count, shared.best, left, shared.select);
  for (int l = warp; l < all.count; l += kWarps) {
    const Layer& layer = all.layers[l];
    int above = 0, equal = 0;
    for (int i = lane; i < layer.units && left > 0; i += 32) {
      if (i == shared.best[l]) continue;
      const uint32_t key = key_of(layer.scores[i]);
      above += key > selection.key;
      equal += key == selection.key;
    }
    above = warp_sum(above);
    equal = warp_sum(equal);
    if (lane == 0) shared.above[l] = above, shared.equal[l] = equal;
  }
  __syncthreads();

  if (threadIdx.x != 0) return;
  int ties = selection.ties;
  for (int l = 0; l < all.count; ++l) {
    const int taken = min(shared.equal[l], ties);
    ties -= taken;
    shared.width[l] = 1 + shared.above[l] + taken;
  }
  if (multiple_of > 1) round_widths(all, multiple_of, shared);
  for (int l = 0; l < all.count; ++l) store_result(widths + l, shared.width[l]);
}

struct MaskShared {
  SelectShared select;
  int ties[kWarps];
};

// The mask of layer blockIdx.x.
__global__ void __launch_bounds__(kThreads)
    mask_kernel(const __grid_constant__ Layers all, const __grid_constant__ Widths widths, uint8_t* mask) {
  auto& shared = shared_memory<MaskShared>();
  const int l = static_cast<int>(blockIdx.x), lane = threadIdx.x % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const Layer& layer = all.layers[l];
  const int width = widths.at == nullptr ? widths.known[l] : widths.at[l];
  const Selection selection = select(all, l, l + 1, nullptr, width, shared.select);

  int ties = selection.ties;  // still to be kept
  for (int start = 0; start < layer.units; start += kThreads) {
    const int unit = start + static_cast<int>(threadIdx.x);
    const bool exists = unit < layer.units;
    const uint32_t key = exists ? key_of(layer.scores[unit]) : 0u;
    const bool tie = exists && key == selection.key;
    const unsigned votes = __ballot_sync(kAll, tie);
    if (lane == 0) shared.ties[warp] = __popc(votes);
    __syncthreads();
    int before = __popc(votes & ((1u << lane) - 1u)), found = 0;
    for (int i = 0; i < kWarps; ++i) {
      if (i < warp) before += shared.ties[i];
      found += shared.ties[i];
    }
    const bool kept = key > selection.key || (tie && before < ties);
    if (exists) store_result(mask + layer.first + unit, static_cast<uint8_t>(kept));
    ties -= found;
    __syncthreads();
  }
}

}  // namespace

void ticket_masks(const TicketMasks& a, Launch launch) {
  const Call call(launch, "ticket_masks", {{"layers", a.count}, {"kept", a.keep_in_all}});
  if (a.count < 1 || a.count > kTicketMaxLayers) call.fail("unsupported number of layers");
  Layers all = {};
  Widths widths = {};
  all.count = static_cast<int>(a.count);
  int64_t units = 0;
  for (int l = 0; l < all.count; ++l) {
    const TicketLayer& layer = a.layers[l];
    all.layers[l] = {layer.scores, static_cast<int>(layer.units), static_cast<int>(units)};
    widths.known[l] = static_cast<int>(layer.keep);
    units += layer.units;
  }
  if (units > std::numeric_limits<int>::max() / 4) call.fail("too many units");
  if (a.keep_in_all != 0) {
    widths.at = a.widths;
    call.launch(widths_kernel, 1, kThreads, sizeof(WidthsShared), all, static_cast<int>(a.keep_in_all),
                static_cast<int>(a.multiple_of), a.widths);
  }
  call.launch(mask_kernel, all.count, kThreads, sizeof(MaskShared), all, widths, a.mask);
}

}  // namespace earlybert
