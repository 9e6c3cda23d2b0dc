#include "gather_units.h"

#include <cstring>
#include <type_traits>

#include "launch.cuh"
#include "types.cuh"

namespace earlybert {
namespace {

constexpr int kThreads = 256;
constexpr int kMostUnits = 1024;  // of a block

// A tensor of a launch. Elements move in words, of up to 16 bytes where all addresses and a unit's size allow it.
struct Moved {
  const int64_t* units;
  const float* gates;
  const void *read, *weight;
  void* written;
  float* grad_gates;
  int outer, total, count, inner;  // inner is in words
  int first_block;
  int16_t word_bytes, dtype;
};

struct Batch {
  int64_t count;
  Moved tensors[kGatherUnitsMost];
};
static_assert(sizeof(Batch) <= 4096, "what a kernel may be given");
constexpr int kMostPowerOfTwo = 32;
static_assert(kGatherUnitsMost <= 2 * kMostPowerOfTwo, "a search finds every tensor");

// What a block writes: some units, whole, in some rows ("outer") of the tensor. `lanes` threads stand side by side in
// a row, the others in the rows below, so that a weight with few columns a unit is still read and written along rows.
struct Tile {
  int lanes, units, rows;
};

__host__ __device__ inline Tile tile_of(const Moved& t, bool scatter) {
  const int lanes = t.outer < 8 ? kThreads : 32;
  const int inner = t.inner > 0 ? t.inner : 1;
  // The sum over a unit is one block's work, and a thread's work lies in one unit.
  const bool sums = scatter && t.gates != nullptr;
  const int words = sums ? lanes : t.outer < 8 ? kMostUnits : kThreads;
  return {lanes, words > inner ? words / inner : 1, sums ? t.outer : t.outer < 8 ? 8 : 64};
}

struct Shared {
  int partners[kMostUnits];
  float sums[kThreads];
};

// A thread's part of a block's work on words of a type.
struct Part {
  Tile tile;
  int first_unit, units;  // of the tensor that is written
  int first_row, end_row;
  int read_units, written_units;
};

template <typename T, typename Word>
struct Elements {
  static constexpr int kCount = sizeof(Word) / sizeof(T);
  float v[kCount];

  __device__ __forceinline__ explicit Elements(const Word& word) {
    T elements[kCount];
    memcpy(elements, &word, sizeof(Word));
#pragma unroll
    for (int k = 0; k < kCount; ++k) v[k] = to_float(elements[k]);
  }
  __device__ __forceinline__ Word times(float factor) const {
    T elements[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) elements[k] = from_float<T>(v[k] * factor);
    Word word;
    memcpy(&word, elements, sizeof(Word));
    return word;
  }
};

// The gates' gradients, of each thread's sum over its part of one unit.
__device__ __forceinline__ void store_sums(const Moved& t, const Part& part, float sum, float* sums) {
  const int thread = threadIdx.x, lanes = part.tile.lanes;
  sums[thread] = sum;
  __syncthreads();
  if (thread < lanes) {
    for (int other = thread + lanes; other < kThreads; other += lanes) sum += sums[other];
    sums[thread] = sum;
  }
  __syncthreads();
  if (thread >= part.units) return;
  const int first = part.tile.units == 1 ? 0 : thread * t.inner;
  const int end = part.tile.units == 1 ? lanes : first + t.inner;
  sum = 0.0f;
  for (int lane = first; lane < end; ++lane) sum += sums[lane];
  store_result(t.grad_gates + part.first_unit + thread, sum);
}

// Moves a block's words; T is the type of elements to be multiplied by gates, void where there are none.
template <bool kScatter, typename Word, typename T = void>
__device__ __forceinline__ void move(const Moved& t, const Part& part, Shared& shared) {
  const int lane = threadIdx.x % part.tile.lanes, group = threadIdx.x / part.tile.lanes;
  const int groups = kThreads / part.tile.lanes;
  const int64_t read_row = static_cast<int64_t>(part.read_units) * t.inner;
  const int64_t written_row = static_cast<int64_t>(part.written_units) * t.inner;
  const Word* read = static_cast<const Word*>(t.read);
  [[maybe_unused]] const Word* weight = static_cast<const Word*>(t.weight);
  Word* written = static_cast<Word*>(t.written);
  [[maybe_unused]] float sum = 0.0f;
  for (int word = lane; word < part.units * t.inner; word += part.tile.lanes) {
    const int unit = word / t.inner, partner = shared.partners[unit];
    const int64_t read_at = static_cast<int64_t>(partner) * t.inner + word % t.inner;
    const int64_t written_at = static_cast<int64_t>(part.first_unit) * t.inner + word;
    [[maybe_unused]] float gate = 0.0f;
    if constexpr (!std::is_void_v<T>) {
      if (partner >= 0) gate = t.gates[kScatter ? part.first_unit + unit : partner];
    }
#pragma unroll 4
    for (int64_t row = part.first_row + group; row < part.end_row; row += groups) {
      Word value = {};
      if (partner >= 0) {
        value = __ldg(read + (read_at + row * read_row));
        if constexpr (!std::is_void_v<T>) {
          const Elements<T, Word> elements(value);
          if constexpr (kScatter) {
            const Elements<T, Word> others(__ldg(weight + (written_at + row * written_row)));
            float products = 0.0f;
#pragma unroll
            for (int k = 0; k < elements.kCount; ++k) products += elements.v[k] * others.v[k];
            sum += products;
          }
          value = elements.times(gate);
        }
      }
      store_result(written + (written_at + row * written_row), value);
    }
  }
  if constexpr (kScatter && !std::is_void_v<T>) store_sums(t, part, sum, shared.sums);
}

template <bool kScatter, typename T, typename Element>
__device__ __forceinline__ void move_gated(const Moved& t, const Part& part, Shared& shared) {
  if (t.word_bytes == sizeof(uint4)) {
    move<kScatter, uint4, T>(t, part, shared);
  } else {
    move<kScatter, Element, T>(t, part, shared);
  }
}

template <bool kScatter>
__global__ void __launch_bounds__(kThreads, 3) move_kernel(const __grid_constant__ Batch batch) {
  auto& shared = shared_memory<Shared>();
  const int block = static_cast<int>(blockIdx.x), thread = threadIdx.x;
  int number = 0;  // the last tensor that begins at this block or before it
  for (int step = kMostPowerOfTwo; step > 0; step /= 2) {
    if (number + step < batch.count && batch.tensors[number + step].first_block <= block) number += step;
  }
  const Moved& t = batch.tensors[number];

  Part part;
  part.tile = tile_of(t, kScatter);
  part.read_units = kScatter ? t.count : t.total;
  part.written_units = kScatter ? t.total : t.count;
  const int tiles = (part.written_units + part.tile.units - 1) / part.tile.units;
  part.first_unit = (block - t.first_block) % tiles * part.tile.units;
  part.units = min(part.tile.units, part.written_units - part.first_unit);
  part.first_row = (block - t.first_block) / tiles * part.tile.rows;
  part.end_row = min(t.outer, part.first_row + part.tile.rows);

  // The unit that is read for each that is written, -1 for none.
  for (int i = thread; i < part.units; i += kThreads) {
    const int unit = part.first_unit + i;
    int64_t partner = t.units == nullptr ? (unit < t.count ? unit : -1) : -1;
    if (!kScatter && t.units != nullptr) partner = t.units[unit];
    shared.partners[i] = partner >= 0 && partner < t.total ? static_cast<int>(partner) : -1;
  }
  if (kScatter && t.units != nullptr) {
    __syncthreads();
    for (int i = thread; i < t.count; i += kThreads) {
      const int64_t at = __ldg(t.units + i) - part.first_unit;
      if (at >= 0 && at < part.units) shared.partners[at] = i;
    }
  }
  __syncthreads();

  if (t.gates != nullptr) {
    switch (static_cast<Dtype>(t.dtype)) {
      case Dtype::float32: return move_gated<kScatter, float, uint32_t>(t, part, shared);
      case Dtype::float16: return move_gated<kScatter, __half, uint16_t>(t, part, shared);
      case Dtype::bfloat16: return move_gated<kScatter, __nv_bfloat16, uint16_t>(t, part, shared);
    }
  }
  switch (t.word_bytes) {
    case 16: return move<kScatter, uint4>(t, part, shared);
    case 8: return move<kScatter, uint64_t>(t, part, shared);
    case 4: return move<kScatter, uint32_t>(t, part, shared);
    case 2: return move<kScatter, uint16_t>(t, part, shared);
    default: return move<kScatter, uint8_t>(t, part, shared);
  }
}

bool divides(int64_t bytes, const GatherUnits& t) {
  return t.inner * t.element_bytes % bytes == 0 && reinterpret_cast<std::uintptr_t>(t.read) % bytes == 0 &&
         reinterpret_cast<std::uintptr_t>(t.written) % bytes == 0 &&
         reinterpret_cast<std::uintptr_t>(t.weight) % bytes == 0;
}

template <bool kScatter>
void run(const char* op, const GatherUnits* tensors, int64_t count, Launch launch) {
  const Call call(launch, op, {{"tensors", count}});
  Batch batch = {};
  int64_t blocks = 0;
  const auto flush = [&] {
    if (blocks > 0) call.launch(move_kernel<kScatter>, static_cast<unsigned>(blocks), kThreads, sizeof(Shared), batch);
    batch.count = blocks = 0;
  };
  for (const GatherUnits* t = tensors; t < tensors + count; ++t) {
    constexpr int64_t kMost = INT32_MAX / 2;  // so that a tile's end is still an int
    const bool fits = t->outer <= kMost && t->total <= kMost && t->inner * t->element_bytes <= kMost;
    if (!fits || t->count > t->total) call.fail("unsupported sizes of a tensor");
    int64_t word = t->element_bytes;
    for (int64_t wider : {2, 4, 8, 16}) {
      if (wider > word && (t->gates == nullptr || wider == 16) && divides(wider, *t)) word = wider;
    }
    Moved moved = {};
    moved.units = t->units;
    moved.gates = t->gates;
    moved.read = t->read;
    moved.weight = t->weight;
    moved.written = t->written;
    moved.grad_gates = t->grad_gates;
    moved.outer = static_cast<int>(t->outer);
    moved.total = static_cast<int>(t->total);
    moved.count = static_cast<int>(t->count);
    moved.inner = static_cast<int>(t->inner * t->element_bytes / word);
    moved.word_bytes = static_cast<int16_t>(word);
    moved.dtype = static_cast<int16_t>(t->dtype);
    const Tile tile = tile_of(moved, kScatter);
    const bool sums = kScatter && t->gates != nullptr;  // which are 0 where there is nothing to add
    const int64_t rows = sums ? 1 : blocks_for(t->outer * (t->inner > 0), tile.rows);
    const int64_t more = blocks_for(kScatter ? t->total : t->count, tile.units) * rows;
    if (more == 0) continue;
    if (more > INT32_MAX) call.fail("unsupported sizes of a tensor");
    if (batch.count == kGatherUnitsMost || blocks + more > INT32_MAX) flush();
    moved.first_block = static_cast<int>(blocks);
    batch.tensors[batch.count++] = moved;
    blocks += more;
  }
  flush();
}

}  // namespace

void gather_units(const GatherUnits* tensors, int64_t count, Launch launch) {
  run<false>("gather_units", tensors, count, launch);
}

void scatter_units(const GatherUnits* tensors, int64_t count, Launch launch) {
  run<true>("scatter_units", tensors, count, launch);
}

}  // namespace earlybert
