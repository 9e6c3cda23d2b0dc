#include "embedding_layer_norm.h"

#include "dropout.h"
#include "layer_norm.h"

namespace earlybert {
namespace EARLYBERT_ISA {

// Below this many elements waking the other threads costs more than they save.
static constexpr int64_t kParallelElements = 16384;

// Columns of the tables' gradients that one thread adds to at a time.
static constexpr int64_t kScatterCols = 64;

static inline const float* table_row(const EmbeddingInputs& in, int which, int64_t token) {
  return in.tables[which].rows + in.tables[which].ids[token] * in.cols;
}

// Writes the sum of a token's three rows to `row`; returns the sum over its elements.
static inline float sum_tables(const EmbeddingInputs& in, int64_t token, float* __restrict row) {
  const float* __restrict a = table_row(in, 0, token);
  const float* __restrict b = table_row(in, 1, token);
  const float* __restrict c = table_row(in, 2, token);
  float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < in.cols; ++i) {
    row[i] = a[i] + b[i] + c[i];
    sum += row[i];
  }
  return sum;
}

// Multiplies a token's row by its dropout factors, a few at a time.
static inline void drop(const Dropout& dropout, int64_t token, int64_t cols, float* __restrict row) {
  float scales[256];
  for (int64_t begin = 0; begin < cols; begin += 256) {
    const int64_t count = cols - begin < 256 ? cols - begin : 256;
    dropout_scales(dropout, static_cast<uint64_t>(token), begin, count, scales);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) row[begin + i] *= scales[i];
  }
}

void embedding_layer_norm_forward(const EmbeddingLayerNormForward& a) {
  const EmbeddingInputs& in = a.in;
  const Dropout dropout = make_dropout(in.seed != nullptr ? static_cast<uint64_t>(*in.seed) : 0, in.dropout_p);
#pragma omp parallel for schedule(static) if (in.tokens * in.cols >= kParallelElements)
  for (int64_t t = 0; t < in.tokens; ++t) {
    float* out = a.out + t * in.cols;
    const float sum = sum_tables(in, t, out);
    layer_norm_row(out, sum, in.cols, in.weight, a.bias, static_cast<float>(a.eps), t, a.mean, a.rstd);
    if (in.seed != nullptr) drop(dropout, t, in.cols, out);
  }
}

void embedding_layer_norm_backward(const EmbeddingLayerNormBackward& a) {
  const EmbeddingInputs& in = a.in;
  const int64_t cols = in.cols;
  const Dropout dropout = make_dropout(in.seed != nullptr ? static_cast<uint64_t>(*in.seed) : 0, in.dropout_p);
#pragma omp parallel if (in.tokens * cols >= kParallelElements)
  {
    layer_norm_backward_rows(
        in.tokens, cols, a.partials, a.grad_weight, a.grad_bias, [&](int64_t t, float* sum_weight, float* sum_bias) {
          float *row = a.scratch + t * 2 * cols, *grad = row + cols;
          std::memcpy(grad, a.grad_out + t * cols, sizeof(float) * cols);
          if (in.seed != nullptr) drop(dropout, t, cols, grad);
          sum_tables(in, t, row);
          layer_norm_backward_row(row, grad, cols, in.weight, a.mean[t], a.rstd[t], sum_weight, sum_bias);
        });
    // Every thread adds all tokens, in order, to its own columns: no two threads write to one place, and the sums do
    // not depend on how many there are.
#pragma omp for schedule(static)
    for (int64_t begin = 0; begin < cols; begin += kScatterCols) {
      const int64_t end = begin + kScatterCols < cols ? begin + kScatterCols : cols;
      for (int which = 0; which < 3; ++which) {
        const EmbeddingTable& table = in.tables[which];
        for (int64_t t = 0; t < in.tokens; ++t) {
          if (which == 0 && table.ids[t] == a.padding_id) continue;
          const float* __restrict source = a.scratch + t * 2 * cols;
          float* __restrict target = table.grad + table.ids[t] * cols;
#pragma omp simd
          for (int64_t c = begin; c < end; ++c) target[c] += source[c];
        }
      }
    }
  }
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
