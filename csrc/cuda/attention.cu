#include "attention.h"

#include "attention_backward.cuh"
#include "attention_forward.cuh"

// Forward: a block has one head of one sequence, and of its queries up to 16 a warp. The keys and values that they
// meet are in shared memory as a whole.
//
// Backward: a block has one head of one sequence as well. It goes through the keys in tiles of up to 128, 32 a warp,
// and for each tile through the queries in steps of 32, while the next step's are on their way. Weights are computed
// once, a row a key, and make grad_k and grad_v in registers. The gradients of scores go through shared memory for
// grad_q, a product over all the tile's keys: with one tile it is done; with more, its sum waits in a float32 workspace
// that no other block touches: for 512 keys 590 MB through the second-level cache where the arithmetic of the same
// 32k tokens takes 300 us. Where a batch has too few blocks for the device, each tile has its own, with its own part of
// the workspace, and a second kernel sums the parts. Nothing is added atomically: a sum has one order.
//
// With 32 keys a warp, what it reads of shared memory serves twice as many products as with 16 (88 matrices for 160
// products, where the two kinds of blocks of 16-row warps that were here before read 112 for 224), and the random
// numbers of a group of 32 keys are all used. That takes the 255 registers that a thread can have, so blocks of four
// warps, two a multiprocessor: one computes while the other one waits.
//
// The products are mma.sync on every architecture. In sm_90a code a step of forward, 16 rows of 64 values and 64 keys,
// issues 444 other instructions for its 64 products, 163 of them for dropout. By Hopper's published rates the products
// keep a tensor core busy for some 400 cycles, by wgmma for some 260: in training a scheduler is busy for longer than
// either. In evaluation it is not, and there wgmma might save up to a quarter of what long sequences take.
namespace earlybert {
namespace {

// Warps of a block whose sequences have up to so many rows of its kind.
int warps_for(int64_t rows) { return rows <= 16 ? 1 : rows <= 32 ? 2 : rows <= 64 ? 4 : 8; }

// How a pass over sequences is cut.
struct Geometry {
  int warps;
  int64_t tiles, shared_rows;

  size_t shared_bytes(int64_t head_size) const { return static_cast<size_t>(shared_rows * head_size) * 2; }
};

Geometry forward_geometry(int64_t max_keys, int64_t max_queries) {
  // Half as many rows as keys, at least, so that enough threads load those.
  const int warps = warps_for(std::max(max_queries, std::min<int64_t>(max_keys / 2, 64)));
  return {warps, blocks_for(max_queries, warps * kTileRows),
          2 * up_to_tiles(static_cast<int>(max_keys)) + warps * kTileRows};
}

// How backward is cut: threads of a block, each with a key of a tile; blocks for a head of a sequence.
struct BackwardGeometry {
  int threads;
  int64_t parts;
};

BackwardGeometry backward_geometry(int device, const AttentionProblem& p) {
  const int threads = p.max_keys <= 32 ? 32 : p.max_keys <= 64 ? 64 : kBackwardThreads;
  int processors = 0;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  // Two blocks a multiprocessor are all that run at a time.
  const bool enough = p.sequences * p.heads >= 2 * processors;
  return {threads, enough ? 1 : std::max<int64_t>(1, blocks_for(p.max_keys, threads))};
}

template <int kSize>
size_t backward_bytes(int threads, int64_t max_queries) {
  return BackwardMemory<__half, kSize>::bytes(threads / 32, max_queries);
}

Constants constants_of(const AttentionProblem& p, int64_t tiles) {
  const double dropout_p = p.seed == nullptr ? 0.0 : p.dropout_p;
  return {static_cast<float>(p.scale), static_cast<float>(p.scale) * kLog2E,
          static_cast<float>(dropout_scale(dropout_p)), dropout_threshold(dropout_p), static_cast<int>(tiles)};
}

void check(const Call& call, const AttentionProblem& p, Dtype dtype, int64_t head_size) {
  if (dtype == Dtype::float32) call.fail("it takes half precision");
  if (head_size != 32 && head_size != 64) call.fail("it takes heads of 32 or 64 values");
  if (std::max(p.max_keys, p.max_queries) > kAttentionMaxKeys) call.fail("the sequences are too long");
}

// Calls `body` with the C++ type of a dtype and a head's size.
template <typename Body>
void with_types(Dtype dtype, int64_t head_size, Body body) {
  with_half_type(dtype, [&](auto type) {
    if (head_size == 32) {
      body(type, std::integral_constant<int, 32>{});
    } else {
      body(type, std::integral_constant<int, 64>{});
    }
  });
}

}  // namespace

int64_t attention_max_keys(int device, int64_t head_size) {
  if (head_size != 32 && head_size != 64) return 0;
  int bytes = 0;
  if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 0;
  int64_t keys = kAttentionMaxKeys;
  const auto most = [&](int64_t keys) {
    const size_t backward =
        head_size == 32 ? backward_bytes<32>(kBackwardThreads, keys) : backward_bytes<64>(kBackwardThreads, keys);
    return std::max(forward_geometry(keys, keys).shared_bytes(head_size), backward);
  };
  while (most(keys) > static_cast<size_t>(bytes)) {
    keys -= kTileRows;
  }
  return keys;
}

AttentionParts attention_parts(int device, const AttentionProblem& p, int64_t head_size) {
  const BackwardGeometry geometry = backward_geometry(device, p);
  const int64_t steps = p.tokens_q / kQueries + p.sequences;
  const bool one_tile = p.max_keys <= geometry.threads;
  return {geometry.parts, one_tile ? 0 : geometry.parts * p.heads * steps * kQueries * head_size};
}

void attention_forward(const AttentionForward& a, Dtype dtype, int64_t head_size, Launch launch) {
  const AttentionProblem& p = a.problem;
  const Call call(launch, "attention forward",
                  {{"sequences", p.sequences},
                   {"heads", p.heads},
                   {"head size", head_size},
                   {"most keys", p.max_keys},
                   {"most queries", p.max_queries}});
  check(call, p, dtype, head_size);
  const Geometry geometry = forward_geometry(p.max_keys, p.max_queries);
  const int64_t blocks = p.sequences * p.heads * geometry.tiles;
  if (blocks == 0) return;
  with_types(dtype, head_size, [&](auto type, auto size) {
    call.launch(forward_kernel<typename decltype(type)::type, decltype(size)::value>, static_cast<unsigned>(blocks),
                32 * geometry.warps, geometry.shared_bytes(head_size), a, constants_of(p, geometry.tiles));
  });
}

void attention_backward(const AttentionBackward& a, Dtype dtype, int64_t head_size, Launch launch) {
  const AttentionProblem& p = a.problem;
  const Call call(launch, "attention backward",
                  {{"sequences", p.sequences},
                   {"heads", p.heads},
                   {"head size", head_size},
                   {"most keys", p.max_keys},
                   {"most queries", p.max_queries}});
  check(call, p, dtype, head_size);
  const BackwardGeometry geometry = backward_geometry(launch.device, p);
  const int64_t blocks = p.sequences * p.heads;
  if (blocks == 0) return;
  const int steps = static_cast<int>(blocks_for(p.max_queries, kQueries));
  with_types(dtype, head_size, [&](auto type, auto size) {
    using T = typename decltype(type)::type;
    constexpr int kSize = decltype(size)::value;
    const Constants constants = constants_of(p, geometry.parts);
    call.launch(backward_kernel<T, kSize>, static_cast<unsigned>(blocks * geometry.parts), geometry.threads,
                backward_bytes<kSize>(geometry.threads, p.max_queries), a, constants);
    if (geometry.parts == 1 || steps == 0) return;
    constexpr int kPieces = 2 * kSize / kPieceColumns;
    call.launch(sum_parts_kernel<T, kSize>, static_cast<unsigned>(blocks * steps), 32 * kPieces,
                kPieces * kTileRows * kPieceColumns * sizeof(T), a, constants, steps, geometry.threads);
  });
}

}  // namespace earlybert
