// Dropping a batch's padding and putting it back, for several tensors of any dtypes in one launch.
//
// A padded tensor is (batch, seq, ...), a packed one (tokens, ...): its real tokens, whose places in the flattened
// batch `index` gives, rising. Both functions throw std::runtime_error, naming op and sizes, when a launch fails.
#pragma once

#include <cstdint>

#include "launch.h"

namespace earlybert {

struct PaddingPlaces {
  int64_t batch, seq, tokens;
  const int64_t* index;  // (tokens,), each more than the one before
};

// A tensor's padded and packed form, of which one is read and the other written; all in bytes. What is written is
// contiguous, and so are the rows of what is read.
struct PaddingRows {
  const void* from;
  void* to;
  int64_t row_bytes;                 // of one token
  int64_t batch_stride, seq_stride;  // of the padded form where it is read
};

// to[k] = from[index[k]]; zeros for a place outside the batch.
void unpad(const PaddingPlaces& places, const PaddingRows* tensors, int64_t count, Launch launch);

// to[index[k]] = from[k], and zeros elsewhere.
void pad(const PaddingPlaces& places, const PaddingRows* tensors, int64_t count, Launch launch);

}  // namespace earlybert
