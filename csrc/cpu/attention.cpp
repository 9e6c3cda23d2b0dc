#include "attention.h"

#include <cstdlib>

#include "dropout.h"
#include "small_gemm.h"

namespace earlybert {
namespace EARLYBERT_ISA {

// Queries that are worked on together: their scores against all keys are the largest tile in memory.
static constexpr int64_t kQueries = 32;

// Below this many scores waking the other threads costs more than they save.
static constexpr int64_t kParallelScores = 4096;

// Where things stand in one thread's scratch memory, and the padded sizes that let every row be whole vectors.
struct Tiles {
  int64_t keys, size;  // longest and head_size, rounded up
  float *k, *v;        // (longest, size)
  float *k_columns, *v_columns;   // (head_size, keys): transposed
  float *q, *rows;                // (kQueries, size)
  float *scores, *grad_scores;    // (kQueries, keys)
  float* dropout;                 // (keys,)
  float *grad_k, *grad_v;         // (longest, size)
};

// Lays the tiles out in `memory`; returns how many floats they take.
static int64_t lay_out(const AttentionInputs& in, float* memory, Tiles* tiles) {
  tiles->keys = round_up(in.longest, kVec);
  tiles->size = round_up(in.head_size, kVec);
  int64_t used = 0;
  const auto take = [&](int64_t floats) {
    float* place = memory == nullptr ? nullptr : memory + used;
    used += round_up(floats, 16);
    return place;
  };
  const int64_t tokens = in.longest * tiles->size, columns = in.head_size * tiles->keys;
  tiles->k = take(tokens), tiles->v = take(tokens);
  tiles->k_columns = take(columns), tiles->v_columns = take(columns);
  tiles->q = take(kQueries * tiles->size), tiles->rows = take(kQueries * tiles->size);
  tiles->scores = take(kQueries * tiles->keys), tiles->grad_scores = take(kQueries * tiles->keys);
  tiles->dropout = take(tiles->keys);
  tiles->grad_k = take(tokens), tiles->grad_v = take(tokens);
  return used;
}

// Rows of one head, each padded with zeros to `size` floats.
static void copy_rows(const Heads& source, int64_t head, int64_t token, int64_t tokens, int64_t head_size, int64_t size,
                      float* target) {
  for (int64_t t = 0; t < tokens; ++t) {
    const float* row = source.data + (token + t) * source.token_stride + head * source.head_stride;
    for (int64_t d = 0; d < head_size; ++d) target[t * size + d] = row[d];
    for (int64_t d = head_size; d < size; ++d) target[t * size + d] = 0.0f;
  }
}

// (tokens, size) rows -> (head_size, keys) columns, padded with zeros.
static void transpose(const float* rows, int64_t tokens, int64_t head_size, int64_t size, int64_t keys,
                      float* columns) {
  const int64_t padded = round_up(tokens, kVec);
  for (int64_t d = 0; d < head_size; ++d) {
    for (int64_t t = 0; t < tokens; ++t) columns[d * keys + t] = rows[t * size + d];
    for (int64_t t = tokens; t < padded; ++t) columns[d * keys + t] = 0.0f;
  }
}

static void write_rows(const float* rows, int64_t tokens, int64_t size, float factor, int64_t heads, int64_t head,
                       int64_t head_size, int64_t token, float* target) {
  for (int64_t t = 0; t < tokens; ++t) {
    float* out = target + ((token + t) * heads + head) * head_size;
    for (int64_t d = 0; d < head_size; ++d) out[d] = rows[t * size + d] * factor;
  }
}

static void zero_rows(int64_t tokens, int64_t heads, int64_t head, int64_t head_size, int64_t token, float* target) {
  for (int64_t t = 0; t < tokens; ++t) {
    float* out = target + ((token + t) * heads + head) * head_size;
    for (int64_t d = 0; d < head_size; ++d) out[d] = 0.0f;
  }
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

// The same for a block of queries, from the beginning of a vector.
static inline Range seen_by_block(const AttentionInputs& in, int64_t begin, int64_t count, int64_t keys) {
  const Range range = seen(in, begin, begin + count - 1, keys);
  return {range.begin / kVec * kVec, range.end};
}

static inline void write_logsumexp(const AttentionForward& a, int64_t head, int64_t query, float value) {
  if (a.logsumexp != nullptr) a.logsumexp[head * a.in.tokens_q + query] = value;
}

static void forward_head(const AttentionForward& a, const Dropout& dropout, const Tiles& t, int64_t sequence,
                         int64_t head) {
  const AttentionInputs& in = a.in;
  const Span queries = span(in.cu_seqlens_q, sequence), keys = span(in.cu_seqlens, sequence);
  if ((in.head_mask != nullptr && !in.head_mask[head]) || keys.length == 0) {
    zero_rows(queries.length, in.heads, head, in.head_size, queries.first, a.out);
    for (int64_t i = 0; i < queries.length; ++i) write_logsumexp(a, head, queries.first + i, 0.0f);
    return;
  }
  const float gate = in.head_gates == nullptr ? 1.0f : in.head_gates[head];
  copy_rows(in.k, head, keys.first, keys.length, in.head_size, t.size, t.k);
  transpose(t.k, keys.length, in.head_size, t.size, t.keys, t.k_columns);
  copy_rows(in.v, head, keys.first, keys.length, in.head_size, t.size, t.v);

  for (int64_t begin = 0; begin < queries.length; begin += kQueries) {
    const int64_t count = queries.length - begin < kQueries ? queries.length - begin : kQueries;
    const int64_t first = queries.first + begin;
    const Range block = seen_by_block(in, begin, count, keys.length);
    const int64_t width = round_up(block.end - block.begin, kVec);
    copy_rows(in.q, head, first, count, in.head_size, t.size, t.q);
    small_gemm(count, width, in.head_size, {t.q, t.size, 1}, t.k_columns + block.begin, t.keys, t.scores, t.keys,
               false);
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
    small_gemm(count, t.size, block.end - block.begin, {t.scores, t.keys, 1}, t.v + block.begin * t.size, t.size,
               t.rows, t.size, false);
    write_rows(t.rows, count, t.size, gate, in.heads, head, in.head_size, first, a.out);
  }
}

// With S the scaled scores, P = softmax(S), F the dropout factors, c the gate and G the gradient of the output:
//   grad_v = c (P F)^T G;  grad_P = c F (G v^T);  grad_c = sum P F (G v^T)
//   grad_S = P (grad_P - rowsum(P grad_P)) = c P (F (G v^T) - g)  with  g = rowsum(P F (G v^T))
static void backward_head(const AttentionBackward& a, const Dropout& dropout, const Tiles& t, int64_t sequence,
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
  copy_rows(in.k, head, keys.first, keys.length, in.head_size, t.size, t.k);
  transpose(t.k, keys.length, in.head_size, t.size, t.keys, t.k_columns);
  copy_rows(in.v, head, keys.first, keys.length, in.head_size, t.size, t.v);
  transpose(t.v, keys.length, in.head_size, t.size, t.keys, t.v_columns);

  // Where every block of queries sees all keys, the first one writes the gradients that the others add to.
  const bool sees_all = in.window >= keys.length && in.window >= queries.length;
  for (int64_t i = 0; i < (sees_all ? 0 : keys.length * t.size); ++i) t.grad_k[i] = t.grad_v[i] = 0.0f;

  for (int64_t begin = 0; begin < queries.length; begin += kQueries) {
    const int64_t count = queries.length - begin < kQueries ? queries.length - begin : kQueries;
    const int64_t first = queries.first + begin;
    const Range block = seen_by_block(in, begin, count, keys.length);
    const int64_t block_keys = block.end - block.begin, width = round_up(block_keys, kVec);
    copy_rows(in.q, head, first, count, in.head_size, t.size, t.q);
    copy_rows(grad_out, head, first, count, in.head_size, t.size, t.rows);
    small_gemm(count, width, in.head_size, {t.q, t.size, 1}, t.k_columns + block.begin, t.keys, t.scores, t.keys,
               false);
    small_gemm(count, width, in.head_size, {t.rows, t.size, 1}, t.v_columns + block.begin, t.keys, t.grad_scores,
               t.keys, false);
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
    small_gemm(block_keys, t.size, count, {t.scores, 1, t.keys}, t.rows, t.size, t.grad_v + at, t.size, accumulate);
    small_gemm(block_keys, t.size, count, {t.grad_scores, 1, t.keys}, t.q, t.size, t.grad_k + at, t.size, accumulate);
    small_gemm(count, t.size, block_keys, {t.grad_scores, t.keys, 1}, t.k + at, t.size, t.rows, t.size, false);
    write_rows(t.rows, count, t.size, 1.0f, in.heads, head, in.head_size, first, a.grad_q);
  }
  write_rows(t.grad_k, keys.length, t.size, 1.0f, in.heads, head, in.head_size, keys.first, a.grad_k);
  write_rows(t.grad_v, keys.length, t.size, gate, in.heads, head, in.head_size, keys.first, a.grad_v);
  if (a.grad_gates != nullptr) a.grad_gates[sequence * in.heads + head] = grad_gate;
}

// Calls `work` for every sequence and head, each with the tiles of the thread it runs on. Sequences and heads share
// no output, so the result is the same for any number of threads.
template <typename Arguments>
static bool for_each_head(const Arguments& a,
                          void (*work)(const Arguments&, const Dropout&, const Tiles&, int64_t, int64_t)) {
  const AttentionInputs& in = a.in;
  const Dropout dropout = make_dropout(in.seed != nullptr ? static_cast<uint64_t>(*in.seed) : 0, in.dropout_p);
  const int64_t pairs = in.sequences * in.heads;
  Tiles unplaced;
  const int64_t floats = lay_out(in, nullptr, &unplaced);
  bool enough = true;
#pragma omp parallel if (pairs > 1 && pairs * in.longest * in.longest_q >= kParallelScores)
  {
    float* memory = static_cast<float*>(std::aligned_alloc(64, static_cast<std::size_t>(floats) * sizeof(float)));
    Tiles tiles;
    if (memory != nullptr) lay_out(in, memory, &tiles);
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

bool attention_forward(const AttentionForward& a) { return for_each_head(a, forward_head); }
bool attention_backward(const AttentionBackward& a) { return for_each_head(a, backward_head); }

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
