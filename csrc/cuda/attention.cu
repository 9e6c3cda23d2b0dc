#include "attention.h"

#include "attention_backward.cuh"
#include "attention_forward.cuh"

// A block has one head of one sequence, and of its rows up to 16 a warp. What those rows meet is in shared memory as a
// whole. Forward: queries meet keys and values. Backward has blocks of two kinds, each with 16 rows' sums in registers
// until the end, so that nothing is added atomically and no block waits for another:
//   queries that meet keys and values, for grad_q, and keys that meet queries and gradients, for grad_k and grad_v.
// Scores are computed by both: 7 products instead of 5, where short sequences leave tensor cores waiting for memory.
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

Geometry backward_geometry(int64_t max_keys, int64_t max_queries) {
  const int64_t most = std::max(max_keys, max_queries);
  const int warps = warps_for(most);
  return {warps, blocks_for(most, warps * kTileRows), 2 * up_to_tiles(static_cast<int>(most)) + 2 * warps * kTileRows};
}

Constants constants_of(const AttentionProblem& p, const Geometry& geometry) {
  const double dropout_p = p.seed == nullptr ? 0.0 : p.dropout_p;
  return {static_cast<float>(p.scale), static_cast<float>(p.scale) * kLog2E,
          static_cast<float>(dropout_scale(dropout_p)), dropout_threshold(dropout_p),
          static_cast<int>(geometry.tiles)};
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
  while (std::max(forward_geometry(keys, keys).shared_bytes(head_size),
                  backward_geometry(keys, keys).shared_bytes(head_size)) > static_cast<size_t>(bytes)) {
    keys -= kTileRows;
  }
  return keys;
}

int64_t attention_tiles(int64_t max_keys, int64_t max_queries) {
  return backward_geometry(max_keys, max_queries).tiles;
}

void attention_forward(const AttentionForward& a, Dtype dtype, int64_t head_size, Launch launch) {
  const AttentionProblem& p = a.problem;
  const Call call(launch, "attention forward",
                  {{"sequences", p.sequences}, {"heads", p.heads}, {"head size", head_size},
                   {"most keys", p.max_keys}, {"most queries", p.max_queries}});
  check(call, p, dtype, head_size);
  const Geometry geometry = forward_geometry(p.max_keys, p.max_queries);
  const int64_t blocks = p.sequences * p.heads * geometry.tiles;
  if (blocks == 0) return;
  with_types(dtype, head_size, [&](auto type, auto size) {
    call.launch(forward_kernel<typename decltype(type)::type, decltype(size)::value>, static_cast<unsigned>(blocks),
                32 * geometry.warps, geometry.shared_bytes(head_size), a, constants_of(p, geometry));
  });
}

void attention_backward(const AttentionBackward& a, Dtype dtype, int64_t head_size, Launch launch) {
  const AttentionProblem& p = a.problem;
  const Call call(launch, "attention backward",
                  {{"sequences", p.sequences}, {"heads", p.heads}, {"head size", head_size},
                   {"most keys", p.max_keys}, {"most queries", p.max_queries}});
  check(call, p, dtype, head_size);
  const Geometry geometry = backward_geometry(p.max_keys, p.max_queries);
  const int64_t blocks = 2 * p.sequences * p.heads * geometry.tiles;
  if (blocks == 0) return;
  with_types(dtype, head_size, [&](auto type, auto size) {
    call.launch(backward_kernel<typename decltype(type)::type, decltype(size)::value>, static_cast<unsigned>(blocks),
                32 * geometry.warps, geometry.shared_bytes(head_size), a, constants_of(p, geometry));
  });
}

}  // namespace earlybert
