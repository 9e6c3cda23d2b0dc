#include "cross_entropy.h"

#include "vec.h"

namespace earlybert {
namespace EARLYBERT_ISA {

// Below this many logits waking the other threads costs more than they save.
static constexpr int64_t kParallelLogits = 16384;

void cross_entropy(const CrossEntropy& a) {
#pragma omp parallel for schedule(static) if (a.rows * a.cols >= kParallelLogits)
  for (int64_t r = 0; r < a.rows; ++r) {
    float* row = a.logits + r * a.cols;
    const float label_logit = row[a.labels[r]];
    Vec largest = splat(label_logit);
    for (int64_t c = 0; c < a.cols; c += kVec) {
      const int64_t count = a.cols - c;
      Vec v = load_some(row + c, count);
      for (int64_t i = count; i < kVec; ++i) v[i] = label_logit;
      largest = max(largest, v);
    }
    const float top = max_lanes(largest);
    Vec sums = {};
    for (int64_t c = 0; c < a.cols; c += kVec) {
      const int64_t count = a.cols - c;
      Vec e = exp_negative(load_some(row + c, count) - top);
      for (int64_t i = count; i < kVec; ++i) e[i] = 0.0f;
      sums += e;
      store_some(row + c, e, count);
    }
    const float total = sum_lanes(sums), factor = a.scale / total;
    for (int64_t c = 0; c < a.cols; c += kVec) {
      store_some(row + c, load_some(row + c, a.cols - c) * factor, a.cols - c);
    }
    row[a.labels[r]] -= a.scale;
    a.losses[r] = __builtin_logf(total) + (top - label_logit);  // in this order a small loss keeps its digits
  }
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
