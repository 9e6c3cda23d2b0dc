// Runs CUDA kernels on the processor, to test them where there is no GPU: the headers beside this one take the place
// of the toolkit's, and g++ compiles the very sources that nvcc compiles.
//
// Blocks run one after the other, each thread of a block as a fiber. From one barrier to the next the warps run one
// after the other as well, in random order, and a warp's lanes up or down, so that a missing barrier shows as a wrong
// result. Shared memory holds NaN when a block begins. Asynchronous copies happen when they are waited for, and
// not before. Waiting for threads that never come, lanes of a warp that meet in different operations, results that are
// stored twice, and addresses of results and of __ldg that are not aligned, are errors, thrown as std::runtime_error by
// the launch.
//
// Not emulated: how many threads, registers and bytes a GPU has room for, and how fast anything is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace emulator {

struct Index {
  unsigned x = 1, y = 1, z = 1;
};

// What the running thread sees as threadIdx and so on.
struct Position {
  Index thread, block, block_size, grid_size;
};
extern Position position;

// Runs a grid; `body` is what each thread does.
void run(Index grid_size, Index block_size, size_t shared_bytes, const std::function<void()>& body);

// The block's dynamic shared memory.
unsigned char* shared_memory();

// Waits for all threads of the block that have not returned.
void barrier();

// What the lanes of a warp do together: `lanes[i]` is what lane i gave, null for lanes that take no part.
using Together = void (*)(void* const* lanes);

// Waits until all lanes of `mask` are here, with the same `together`; the last one calls it.
void collective(unsigned mask, void* own, Together together);

// An error where the address is no multiple of what a type needs; g++ reads and writes it all the same.
void aligned(const void* address, size_t alignment);

// To be called for every store of a result: bytes that a launch stores twice are an error.
void stored(const void* address, size_t bytes);

// cp.async and what goes with it: `bytes` are copied, the rest of `to` up to `size` is filled with zeros.
void copy_later(void* to, const void* from, size_t bytes, size_t size);
void commit_copies();
void wait_for_copies(size_t groups_still_open);

[[noreturn]] void fail(const char* why);

}  // namespace emulator
