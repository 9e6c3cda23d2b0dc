#include "attention.h"

#include <cstdlib>

#include "dropout.h"
#include "small_gemm.h"

namespace earlybert {
namespace EARLYBERT_ISA {

// Queries that are worked on together: their scores against all keys are the largest tile in memory.
static constexpr int64_t kQueries = 64;

// Below this many scores waking the other threads costs more than they save.
static constexpr int64_t kParallelScores = 4096;

// Where things stand in one thread's scratch memory, and the padded sizes that let every row be whole tiles.
template <typename Kernel>
struct Tiles {
  using Element = typename Kernel::Element;
  int64_t keys, size;            // longest and head_size, rounded up
  Element *k, *v;                // packed, one key a column
  Element* columns;              // values, or in backward keys, one a row
  Element *q, *grad_out;         // packed, one query a row
  Element* left;                 // a tile of the left factor
  float *scores, *grad_scores;   // (kQueries, keys)
  float* rows;                   // (kQueries, size)
  float* dropout;                // (keys,)
  float *grad_k, *grad_v;        // (longest, size)
};

// Lays the tiles out in `memory`; returns how many floats they take.
template <typename Kernel>
static int64_t lay_out(const AttentionInputs& in, float* memory, Tiles<Kernel>* tiles) {
  static_assert(sizeof(typename Kernel::Element) == sizeof(float), "both are counted in floats");
  tiles->keys = round_up(in.longest, kTileCols);
  tiles->size = round_up(in.head_size, kTileCols);
  int64_t used = 0;
  const auto take = [&](auto** place, int64_t floats) {
    *place = memory == nullptr ? nullptr : reinterpret_cast<decltype(*place + 0)>(memory + used);
    used += round_up(floats, 16);
  };
  const int64_t by_size = tiles->keys / kTileCols * panel_elements<Kernel>(in.head_size);
  const int64_t by_keys = tiles->size / kTileCols * panel_elements<Kernel>(in.longest);
  const int64_t by_queries = tiles->size / kTileCols * panel_elements<Kernel>(kQueries);
  take(&tiles->k, by_size), take(&tiles->v, by_size);
  take(&tiles->columns, by_keys);
  take(&tiles->q, by_queries), take(&tiles->grad_out, by_queries);
  take(&tiles->left, Kernel::kPanel * Kernel::steps(max(max(in.longest, in.head_size), kQueries)));
  take(&tiles->scores, kQueries * tiles->keys), take(&tiles->grad_scores, kQueries * tiles->keys);
  take(&tiles->rows, kQueries * tiles->size);
  take(&tiles->dropout, tiles->keys);
  take(&tiles->grad_k, in.longest * tiles->size), take(&tiles->grad_v, in.longest * tiles->size);
  return used;
}

static inline Numbers after(const Numbers& numbers, int64_t count) {
  return {numbers.floats == nullptr ? nullptr : numbers.floats + count,
          numbers.halves == nullptr ? nullptr : numbers.halves + count};
}

// One head from a token on: products sum over the elements of a token, or over tokens.
static inline Factor rows_of(const Heads& heads, int64_t head, int64_t token) {
  const Numbers first = after(heads.data, token * heads.token_stride + head * heads.head_stride);
  return {first, heads.token_stride, 1, nullptr, nullptr, nullptr, nullptr};
}
static inline Factor columns_of(const Heads& heads, int64_t head, int64_t token) {
  const Numbers first = after(heads.data, token * heads.token_stride + head * heads.head_stride);
  return {first, 1, heads.token_stride, nullptr, nullptr, nullptr, nullptr};
}
// Of a tile with `keys` numbers a query: likewise over keys, or over queries.
static inline Factor over_keys(float* tile, int64_t keys) {
  return {{tile, nullptr}, keys, 1, nullptr, nullptr, nullptr, nullptr};
}
static inline Factor over_queries(float* tile, int64_t keys) {
  return {{tile, nullptr}, 1, keys, nullptr, nullptr, nullptr, nullptr};
}

// Rows of `size` floats, of which head_size count, times a factor; null for zeros.
static void write_rows(const float* rows, int64_t tokens, int64_t size, float factor, int64_t heads, int64_t head,
                       int64_t head_size, int64_t token, const Numbers& target) {
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t start = ((token + t) * heads + head) * head_size;
    for (int64_t d = 0; d < head_size; d += kVec) {
      const Vec v = rows == nullptr ? Vec{} : load(rows + t * size + d) * factor;
      if (target.halves == nullptr) {
        store_some(target.floats + start + d, v, head_size - d);
      } else {
        store_some(target.halves + start + d, v, head_size - d);
      }
    }
  }
}
static void zero_rows(int64_t tokens, int64_t heads, int64_t head, int64_t head_size, int64_t token,
                      const Numbers& target) {
  write_rows(nullptr, tokens, 0, 0.0f, heads, head, head_size, token, target);
}

// The dropout factors of one query's weights. Its row is that in a (heads, tokens_q, keys) tensor, whichever heads are
// computed.
static inline void dropout_row(const AttentionInputs& in, const Dropout& dropout, int64_t head, int64_t query,
                               int64_t keys, float* factors) {
  dropout_scales(dropout, static_cast<uint64_t>(head * in.tokens_q + query), 0, keys, factors);
}

// One sequence: its first token and its length, of queries or keys.
struct Span {
  int64_t first, length;
};
static inline Span span(const int32_t* cu_seqlens, int64_t sequence) {
  return {cu_seqlens[sequence], cu_seqlens[sequence + 1] - cu_seqlens[sequence]};
}

// Keys from `begin` to before `end`.
struct Range {
  int64_t begin, end;
};

// The keys, of so many in the sequence, that queries at places `first` to `last` of it attend to.
static inline Range seen(const AttentionInputs& in, int64_t first, int64_t last, int64_t keys) {
  const int64_t begin = first > in.window ? first - in.window : 0;
  const int64_t end = keys - last > in.window + 1 ? last + in.window + 1 : keys;
  return {begin < end ? begin : end, end};
}

// The same for a block of queries, in whole tiles as far as there are keys.
static inline Range seen_by_block(const AttentionInputs& in, int64_t begin, int64_t count, int64_t keys) {
  const Range range = seen(in, begin, begin + count - 1, keys);
  return {range.begin / kTileCols * kTileCols, min(round_up(range.end, kTileCols), keys)};
}

static inline void write_logsumexp(const AttentionForward& a, int64_t head, int64_t query, float value) {
  if (a.logsumexp != nullptr) a.logsumexp[head * a.in.tokens_q + query] = value;
}

template <typename Kernel>
static void forward_head(const AttentionForward& a, const Dropout& dropout, const Tiles<Kernel>& t, int64_t sequence,
                         int64_t head) {
  const AttentionInputs& in = a.in;
  const Span queries = span(in.cu_seqlens_q, sequence), keys = span(in.cu_seqlens, sequence);
  if ((in.head_mask != nullptr && !in.head_mask[head]) || keys.length == 0) {
    zero_rows(queries.length, in.heads, head, in.head_size, queries.first, a.out);
    for (int64_t i = 0; i < queries.length; ++i) write_logsumexp(a, head, queries.first + i, 0.0f);
    return;
  }
  const float gate = in.head_gates == nullptr ? 1.0f : in.head_gates[head];
  const int64_t by_size = panel_elements<Kernel>(in.head_size), by_keys = panel_elements<Kernel>(keys.length);
  pack_right<Kernel>(keys.length, in.head_size, rows_of(in.k, head, keys.first), t.k);
  pack_right<Kernel>(in.head_size, keys.length, columns_of(in.v, head, keys.first), t.columns);

  for (int64_t begin = 0; begin < queries.length; begin += kQueries) {
    const int64_t count = queries.length - begin < kQueries ? queries.length - begin : kQueries;
    const int64_t first = queries.first + begin;
    const Range block = seen_by_block(in, begin, count, keys.length);
    const int64_t block_keys = block.end - block.begin, width = round_up(block_keys, kVec);
    small_gemm<Kernel>(count, block_keys, in.head_size, rows_of(in.q, head, first),
                       t.k + block.begin / kTileCols * by_size, by_size, t.left, t.scores, t.keys, false);
    for (int64_t i = 0; i < count; ++i) {
      float* row = t.scores + i * t.keys;
      const Range own = seen(in, begin + i, begin + i, keys.length);
      const int64_t from = own.begin - block.begin, to = own.end - block.begin;
      if (from >= to) {
        for (int64_t j = 0; j < width; ++j) row[j] = 0.0f;
        write_logsumexp(a, head, first + i, 0.0f);
        continue;
      }
      // Columns of other keys, and those behind the last one: put what can be no maximum there, and later no weight.
      for (int64_t j = 0; j < from; ++j) row[j] = row[from];
      for (int64_t j = to; j < width; ++j) row[j] = row[from];
      Vec largest = load(row) * in.scale;
      for (int64_t j = 0; j < width; j += kVec) {
        const Vec scaled = load(row + j) * in.scale;
        store(row + j, scaled);
        largest = max(largest, scaled);
      }
      const float top = max_lanes(largest);
      for (int64_t j = 0; j < width; j += kVec) store(row + j, exp_negative(load(row + j) - top));
      for (int64_t j = 0; j < from; ++j) row[j] = 0.0f;
      for (int64_t j = to; j < width; ++j) row[j] = 0.0f;
      Vec sums = {};
      for (int64_t j = 0; j < width; j += kVec) sums += load(row + j);
      const float total = sum_lanes(sums);
      write_logsumexp(a, head, first + i, top + __builtin_logf(total));
      const float inverse = 1.0f / total;
      if (in.seed != nullptr) {
        dropout_row(in, dropout, head, first + i, keys.length, t.dropout);
        for (int64_t j = from; j < to; ++j) row[j] *= t.dropout[block.begin + j] * inverse;
      } else {
        for (int64_t j = 0; j < width; j += kVec) store(row + j, load(row + j) * inverse);
      }
    }
    small_gemm<Kernel>(count, in.head_size, block_keys, over_keys(t.scores, t.keys),
                       t.columns + panel_elements<Kernel>(block.begin), by_keys, t.left, t.rows, t.size, false);
    write_rows(t.rows, count, t.size, gate, in.heads, head, in.head_size, first, a.out);
  }
}

// With S the scaled scores, P = softmax(S), F the dropout factors, c the gate and G the gradient of the output:
//   grad_v = c (P F)^T G;  grad_P = c F (G v^T);  grad_c = sum P F (G v^T)
//   grad_S = P (grad_P - rowsum(P grad_P)) = c P (F (G v^T) - g)  with  g = rowsum(P F (G v^T))
template <typename Kernel>
static void backward_head(const AttentionBackward& a, const Dropout& dropout, const Tiles<Kernel>& t, int64_t sequence,
                          int64_t head) {
  const AttentionInputs& in = a.in;
  const Span queries = span(in.cu_seqlens_q, sequence), keys = span(in.cu_seqlens, sequence);
  float grad_gate = 0.0f;
  if ((in.head_mask != nullptr && !in.head_mask[head]) || keys.length == 0 || queries.length == 0) {
    zero_rows(queries.length, in.heads, head, in.head_size, queries.first, a.grad_q);
    zero_rows(keys.length, in.heads, head, in.head_size, keys.first, a.grad_k);
    zero_rows(keys.length, in.heads, head, in.head_size, keys.first, a.grad_v);
    if (a.grad_gates != nullptr) a.grad_gates[sequence * in.heads + head] = 0.0f;
    return;
  }
  const float gate = in.head_gates == nullptr ? 1.0f : in.head_gates[head];
  const Heads grad_out = {a.grad_out, in.heads * in.head_size, in.head_size};
  const int64_t by_size = panel_elements<Kernel>(in.head_size), by_keys = panel_elements<Kernel>(keys.length);
  pack_right<Kernel>(keys.length, in.head_size, rows_of(in.k, head, keys.first), t.k);
  pack_right<Kernel>(keys.length, in.head_size, rows_of(in.v, head, keys.first), t.v);
  pack_right<Kernel>(in.head_size, keys.length, columns_of(in.k, head, keys.first), t.columns);

  // Where every block of queries sees all keys, the first one writes the gradients that the others add to.
  const bool sees_all = in.window >= keys.length && in.window >= queries.length;
  for (int64_t i = 0; i < (sees_all ? 0 : keys.length * t.size); ++i) t.grad_k[i] = t.grad_v[i] = 0.0f;

  for (int64_t begin = 0; begin < queries.length; begin += kQueries) {
    const int64_t count = queries.length - begin < kQueries ? queries.length - begin : kQueries;
    const int64_t first = queries.first + begin;
    const Range block = seen_by_block(in, begin, count, keys.length);
    const int64_t block_keys = block.end - block.begin, width = round_up(block_keys, kVec);
    const int64_t panels = block.begin / kTileCols * by_size, by_queries = panel_elements<Kernel>(count);
    small_gemm<Kernel>(count, block_keys, in.head_size, rows_of(in.q, head, first), t.k + panels, by_size, t.left,
                       t.scores, t.keys, false);
    small_gemm<Kernel>(count, block_keys, in.head_size, rows_of(grad_out, head, first), t.v + panels, by_size, t.left,
                       t.grad_scores, t.keys, false);
    for (int64_t i = 0; i < count; ++i) {
      float *p = t.scores + i * t.keys, *grad = t.grad_scores + i * t.keys;
      const float logsumexp = a.logsumexp[head * in.tokens_q + first + i];
      // Rounding may leave a score a little above the logarithm of the sum that it is part of.
      for (int64_t j = 0; j < width; j += kVec) {
        store(p + j, exp_negative(-max(Vec{}, splat(logsumexp) - load(p + j) * in.scale)));
      }
      const Range own = seen(in, begin + i, begin + i, keys.length);
      const int64_t from = own.begin - block.begin, to = own.end - block.begin;
      for (int64_t j = 0; j < from; ++j) p[j] = 0.0f;
      for (int64_t j = to; j < width; ++j) p[j] = 0.0f;
      if (in.seed != nullptr) {
        dropout_row(in, dropout, head, first + i, keys.length, t.dropout);
        for (int64_t j = from; j < to; ++j) grad[j] *= t.dropout[block.begin + j];
      }
      Vec sums = {};
      for (int64_t j = 0; j < width; j += kVec) sums += load(p + j) * load(grad + j);
      const float g = sum_lanes(sums), factor = gate * in.scale;
      grad_gate += g;
      for (int64_t j = 0; j < width; j += kVec) store(grad + j, load(p + j) * (load(grad + j) - g) * factor);
      if (in.seed != nullptr) {
        for (int64_t j = from; j < to; ++j) p[j] *= t.dropout[block.begin + j];
      }
    }
    const bool accumulate = begin > 0 || !sees_all;
    const int64_t at = block.begin * t.size;
    pack_right<Kernel>(in.head_size, count, columns_of(grad_out, head, first), t.grad_out);
    small_gemm<Kernel>(block_keys, in.head_size, count, over_queries(t.scores, t.keys), t.grad_out, by_queries, t.left,
                       t.grad_v + at, t.size, accumulate);
    pack_right<Kernel>(in.head_size, count, columns_of(in.q, head, first), t.q);
    small_gemm<Kernel>(block_keys, in.head_size, count, over_queries(t.grad_scores, t.keys), t.q, by_queries, t.left,
                       t.grad_k + at, t.size, accumulate);
    small_gemm<Kernel>(count, in.head_size, block_keys, over_keys(t.grad_scores, t.keys),
                       t.columns + panel_elements<Kernel>(block.begin), by_keys, t.left, t.rows, t.size, false);
    write_rows(t.rows, count, t.size, 1.0f, in.heads, head, in.head_size, first, a.grad_q);
  }
  write_rows(t.grad_k, keys.length, t.size, 1.0f, in.heads, head, in.head_size, keys.first, a.grad_k);
  write_rows(t.grad_v, keys.length, t.size, gate, in.heads, head, in.head_size, keys.first, a.grad_v);
  if (a.grad_gates != nullptr) a.grad_gates[sequence * in.heads + head] = grad_gate;
}

// Calls `work` for every sequence and head, each with the tiles of the thread it runs on. Sequences and heads share
// no output, so the result is the same for any number of threads.
template <typename Kernel, typename Arguments>
static bool for_each_head(const Arguments& a,
                          void (*work)(const Arguments&, const Dropout&, const Tiles<Kernel>&, int64_t, int64_t)) {
  const AttentionInputs& in = a.in;
  const Dropout dropout = make_dropout(in.seed != nullptr ? static_cast<uint64_t>(*in.seed) : 0, in.dropout_p);
  const int64_t pairs = in.sequences * in.heads;
  Tiles<Kernel> unplaced;
  const int64_t floats = lay_out<Kernel>(in, nullptr, &unplaced);
  bool enough = true;
  const bool parallel = pairs > 1 && pairs * in.longest * in.longest_q >= kParallelScores;
#pragma omp parallel num_threads(static_cast<int>(min(pairs, max_threads()))) if (parallel)
  {
    float* memory = static_cast<float*>(std::aligned_alloc(64, static_cast<std::size_t>(floats) * sizeof(float)));
    Tiles<Kernel> tiles;
    if (memory != nullptr) lay_out<Kernel>(in, memory, &tiles);
    // Every thread has to come here, with memory or without.
#pragma omp for schedule(dynamic)
    for (int64_t pair = 0; pair < pairs; ++pair) {
      if (memory == nullptr) {
#pragma omp atomic write
        enough = false;
      } else {
        work(a, dropout, tiles, pair / in.heads, pair % in.heads);
      }
    }
    std::free(memory);
  }
  return enough;
}

bool attention_forward(const AttentionForward& a) {
  return with_kernel(a.in.products, [&](auto kernel) {
    using Kernel = typename decltype(kernel)::type;
    return for_each_head<Kernel>(a, forward_head<Kernel>);
  });
}
bool attention_backward(const AttentionBackward& a) {
  return with_kernel(a.in.products, [&](auto kernel) {
    using Kernel = typename decltype(kernel)::type;
    return for_each_head<Kernel>(a, backward_head<Kernel>);
  });
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
