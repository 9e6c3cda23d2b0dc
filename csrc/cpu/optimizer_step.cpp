#include "optimizer_step.h"

#include <cstdlib>

// The step is bound by memory. The norms of a tensor have to be known before any of it can change, so that it is gone
// through twice: 24 bytes a number for the moments and norms, 16 to apply the update, which is computed anew; to store
// it in between would cost more than that. Whatever the cache still holds the second time is free.

namespace earlybert {
namespace EARLYBERT_ISA {

// Numbers of a tensor whose squares are summed together: a fixed count, so that threads change no result.
static constexpr int64_t kChunk = 8192;
// Numbers of the tensors that are gone through together, twice: parameter and moments of so many fit a cache.
static constexpr int64_t kBatch = 1 << 18;
// Below this many numbers waking the other threads costs more than they save.
static constexpr int64_t kParallelNumbers = 16384;

struct Chunk {
  const OptimizerTensor* tensor;
  int64_t begin, end;
  int64_t first;  // the number of the tensor's first chunk
  double parameter_squares, update_squares;
};

static inline int64_t chunks_of(const OptimizerTensor& tensor) { return (tensor.size + kChunk - 1) / kChunk; }

static inline float update(const OptimizerStep& a, const OptimizerTensor& t, float parameter, float exp_avg,
                           float exp_avg_sq) {
  const float denominator = __builtin_sqrtf(exp_avg_sq) * t.exp_avg_sq_sqrt_scale + a.eps;
  return exp_avg * t.exp_avg_scale / denominator + a.weight_decay * parameter;
}

// The new moments of a chunk, and its share of the norms. Without `adapt` nobody needs these, and the update is
// applied.
template <bool kAdapt>
static inline void advance(const OptimizerStep& step, Chunk& chunk) {
  // Copies: for all that the compiler knows, writing floats could change the originals.
  const OptimizerStep a = step;
  const OptimizerTensor t = *chunk.tensor;
  float* __restrict parameter = t.parameter;
  const float* __restrict gradient = t.gradient;
  float* __restrict exp_avg = t.exp_avg;
  float* __restrict exp_avg_sq = t.exp_avg_sq;
  double parameter_squares = 0.0, update_squares = 0.0;
#pragma omp simd reduction(+ : parameter_squares, update_squares)
  for (int64_t i = chunk.begin; i < chunk.end; ++i) {
    const float p = parameter[i];
    const float g = gradient[i] * a.gradient_factor + (p > 0.0f ? a.l1 : p < 0.0f ? -a.l1 : 0.0f);
    const float m = exp_avg[i] = exp_avg[i] * a.beta1 + g * a.one_minus_beta1;
    const float v = exp_avg_sq[i] = exp_avg_sq[i] * a.beta2 + g * g * a.one_minus_beta2;
    const float u = update(a, t, p, m, v);
    if (kAdapt) {
      parameter_squares += static_cast<double>(p) * static_cast<double>(p);
      update_squares += static_cast<double>(u) * static_cast<double>(u);
    } else {
      parameter[i] = p - a.lr * u;
    }
  }
  chunk.parameter_squares = parameter_squares;
  chunk.update_squares = update_squares;
}

static inline void apply(const OptimizerStep& step, const Chunk& chunk, float rate) {
  const OptimizerStep a = step;
  const OptimizerTensor t = *chunk.tensor;
  float* __restrict parameter = t.parameter;
  const float* __restrict exp_avg = t.exp_avg;
  const float* __restrict exp_avg_sq = t.exp_avg_sq;
#pragma omp simd
  for (int64_t i = chunk.begin; i < chunk.end; ++i) {
    parameter[i] -= rate * update(a, t, parameter[i], exp_avg[i], exp_avg_sq[i]);
  }
}

// |parameter| / |update| of the tensor whose chunks these are, or 1 where one of them is 0.
static inline float trust_ratio(const Chunk* chunks) {
  double parameter_squares = 0.0, update_squares = 0.0;
  for (int64_t i = 0; i < chunks_of(*chunks->tensor); ++i) {
    parameter_squares += chunks[i].parameter_squares;
    update_squares += chunks[i].update_squares;
  }
  if (!(parameter_squares > 0.0 && update_squares > 0.0)) return 1.0f;
  return static_cast<float>(__builtin_sqrt(parameter_squares / update_squares));
}

// Where a batch ends: in front of the first tensor that would make it too large, but never empty.
static int64_t batch_end(const Chunk* chunks, int64_t begin, int64_t count) {
  int64_t numbers = 0, end = begin;
  while (end < count) {
    numbers += chunks[end].tensor->size;
    if (end > begin && numbers > kBatch) break;
    end += chunks_of(*chunks[end].tensor);
  }
  return end;
}

// To be called by all threads of a parallel region.
static void adaptive_step(const OptimizerStep& a, Chunk* chunks, int64_t count) {
  for (int64_t begin = 0, end; begin < count; begin = end) {
    end = batch_end(chunks, begin, count);
#pragma omp for schedule(static)
    for (int64_t i = begin; i < end; ++i) advance<true>(a, chunks[i]);
    const OptimizerTensor* tensor = nullptr;
    float rate = 0.0f;
    // Backwards: the end of a tensor that is larger than the cache is what the cache still holds. Without a barrier
    // behind it: the next batch is other tensors.
#pragma omp for schedule(static) nowait
    for (int64_t i = end - 1; i >= begin; --i) {
      if (chunks[i].tensor != tensor) {
        tensor = chunks[i].tensor;
        rate = a.lr * trust_ratio(chunks + chunks[i].first);
      }
      apply(a, chunks[i], rate);
    }
  }
}

bool optimizer_step(const OptimizerStep& a) {
  int64_t numbers = 0, count = 0;
  for (int64_t t = 0; t < a.count; ++t) {
    numbers += a.tensors[t].size;
    count += chunks_of(a.tensors[t]);
  }
  if (count == 0) return true;
  Chunk* chunks = static_cast<Chunk*>(std::malloc(static_cast<std::size_t>(count) * sizeof(Chunk)));
  if (chunks == nullptr) return false;
  int64_t filled = 0;
  for (int64_t t = 0; t < a.count; ++t) {
    const int64_t first = filled, size = a.tensors[t].size;
    for (int64_t begin = 0; begin < size; begin += kChunk) {
      const int64_t end = begin + kChunk < size ? begin + kChunk : size;
      chunks[filled++] = {a.tensors + t, begin, end, first, 0.0, 0.0};
    }
  }
  if (a.adapt) {
#pragma omp parallel if (numbers >= kParallelNumbers)
    adaptive_step(a, chunks, count);
  } else {
#pragma omp parallel for schedule(static) if (numbers >= kParallelNumbers)
    for (int64_t i = 0; i < count; ++i) advance<false>(a, chunks[i]);
  }
  std::free(chunks);
  return true;
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
