// How a matrix product c = a b is cut into tasks for threads.
#pragma once

#include <cstdint>

#include "factor.h"

namespace earlybert {
namespace EARLYBERT_ISA {

static inline int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

// c in blocks: so many panels of columns by so many tiles of rows each, but for the last ones.
struct Split {
  int64_t tiles, panels;
  int64_t block_tiles, block_panels;
  int64_t row_blocks, column_blocks;

  int64_t tasks() const { return row_blocks * column_blocks; }
};

// The tiles and panels of one block.
struct Task {
  int64_t first_tile, end_tile, first_panel, end_panel;

  Task(const Split& split, int64_t task)
      : first_tile(task / split.column_blocks * split.block_tiles),
        end_tile(min(split.tiles, first_tile + split.block_tiles)),
        first_panel(task % split.column_blocks * split.block_panels),
        end_panel(min(split.panels, first_panel + split.block_panels)) {}
};

// Every task packs its own rows of a and columns of b, which takes as long as Kernel::kPacking multiplications a
// number. So tasks are few, square, and as many for each thread: of the blocks that the cache holds, `most_panels`
// wide, those whose thread with most of them is done first.
template <typename Kernel>
static Split split_of(int64_t rows, int64_t cols, int64_t most_panels, int64_t threads) {
  constexpr int64_t kRounds = 4;  // blocks of a thread that are tried, where columns alone do not make more
  const int64_t tiles = ceil_div(rows, Kernel::kRows), panels = ceil_div(cols, Kernel::kCols);
  Split best = {};
  int64_t least = 0;
  for (int64_t block_panels = min(panels, most_panels); block_panels > 0; --block_panels) {
    const int64_t column_blocks = ceil_div(panels, block_panels);
    for (int64_t round = 1; round <= kRounds; ++round) {
      const int64_t block_tiles = ceil_div(tiles, min(tiles, max(round * threads / column_blocks, 1)));
      const int64_t row_blocks = ceil_div(tiles, block_tiles);
      const int64_t high = block_tiles * Kernel::kRows, wide = block_panels * Kernel::kCols;
      const int64_t time =
          ceil_div(row_blocks * column_blocks, threads) * (high * wide + Kernel::kPacking * (high + wide));
      if (best.row_blocks == 0 || time < least) {
        least = time;
        best = {tiles, panels, block_tiles, block_panels, row_blocks, column_blocks};
      }
    }
    if (threads == 1) break;  // the widest packs least
  }
  return best;
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
