#include "embedding_layer_norm.h"

#include <limits>

#include "column_sums.cuh"
#include "layer_norm.cuh"

namespace earlybert {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// The rows of a token. Where an id is outside its table none is `known`, and nothing is to be read.
template <typename T>
struct Rows {
  const T *word, *position, *token_type;
  int64_t word_id, position_id, token_type_id;
  bool known;
};

template <typename T>
__device__ __forceinline__ Rows<T> rows_of(const EmbeddingTables& tables, int64_t token, int cols) {
  Rows<T> rows = {};
  rows.word_id = tables.word.ids[token];
  rows.position_id = tables.position.ids[token];
  rows.token_type_id = tables.token_type.ids[token];
  rows.known = rows.word_id >= 0 && rows.word_id < tables.word.count && rows.position_id >= 0 &&
               rows.position_id < tables.position.count && rows.token_type_id >= 0 &&
               rows.token_type_id < tables.token_type.count;
  if (rows.known) {
    rows.word = static_cast<const T*>(tables.word.rows) + rows.word_id * cols;
    rows.position = static_cast<const T*>(tables.position.rows) + rows.position_id * cols;
    rows.token_type = static_cast<const T*>(tables.token_type.rows) + rows.token_type_id * cols;
  }
  return rows;
}

// The sum of a token's rows: 0 beyond their end, and where they are not known.
template <typename L, typename T>
__device__ __forceinline__ void load_sum(const Rows<T>& rows, int lane, int cols, Part<L>& sum) {
  const int known_cols = rows.known ? cols : 0;
#pragma unroll
  for (int i = 0; i < L::kItems; ++i) {
    float position[L::kWidth], token_type[L::kWidth];
    load_item<L>(rows.word, i, lane, known_cols, sum[i]);
    load_item<L>(rows.position, i, lane, known_cols, position);
    load_item<L>(rows.token_type, i, lane, known_cols, token_type);
#pragma unroll
    for (int j = 0; j < L::kWidth; ++j) sum[i][j] += position[j] + token_type[j];
  }
}

template <typename T, typename P, typename L>
__global__ void __launch_bounds__(L::kBlock, L::kForwardResident)
    forward_kernel(const EmbeddingLayerNormForward a, Dropout dropout) {
  float* scratch = shared_memory<Scratch>();
  const int lane = threadIdx.x % L::kThreads;
  const int cols = static_cast<int>(a.cols);
  const int64_t token = static_cast<int64_t>(blockIdx.x) * L::kRows + threadIdx.x / L::kThreads;
  if (token >= a.tokens) return;  // whole warps, or (one row a block) nobody
  const Rows<T> rows = rows_of<T>(a.tables, token, cols);
  const uint32_t kept = kept_of_part<L>(dropout, token, lane, cols);

  Part<L> h;
  load_sum<L>(rows, lane, cols, h);
  const float eps = rows.known ? static_cast<float>(a.eps) : kNan;  // NaN makes all of the row NaN
  const Statistics statistics = normalise<L>(h, lane, cols, eps, scratch);

  T* out = static_cast<T*>(a.out) + token * cols;
#pragma unroll
  for (int i = 0; i < L::kItems; ++i) {
    float weight[L::kWidth], bias[L::kWidth];
    load_item<L>(static_cast<const P*>(a.weight), i, lane, cols, weight);
    load_item<L>(static_cast<const P*>(a.bias), i, lane, cols, bias);
#pragma unroll
    for (int j = 0; j < L::kWidth; ++j) {
      h[i][j] = (h[i][j] * weight[j] + bias[j]) * dropout_factor<L>(dropout, kept, i, j);
    }
    store_item<L>(out, i, lane, cols, h[i]);
  }
  if (lane == 0 && a.mean != nullptr) {
    store_result(a.mean + token, statistics.mean);
    store_result(a.rstd + token, statistics.rstd);
  }
}

enum { kWeight, kBias, kSums };  // what is summed over the tokens

// Each block walks over tokens and keeps its share of the sums until the end.
template <typename T, typename P, typename L>
__global__ void __launch_bounds__(L::kBlock, L::kResident)
    backward_kernel(const EmbeddingLayerNormBackward a, Dropout dropout) {
  auto& shared = shared_memory<BackwardShared<L, kSums>>();
  const int lane = threadIdx.x % L::kThreads, group = threadIdx.x / L::kThreads;
  const int cols = static_cast<int>(a.cols);

  clear_sums(shared, group, lane);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * L::kRows;
  for (int64_t token = static_cast<int64_t>(blockIdx.x) * L::kRows + group; token < a.tokens; token += stride) {
    const Rows<T> rows = rows_of<T>(a.tables, token, cols);
    if (lane == 0) {
      const int64_t words = a.tables.word.count, types = a.tables.token_type.count;
      const bool has_word = rows.known && rows.word_id != a.padding_id;
      const int64_t pair = rows.known ? rows.position_id * types + rows.token_type_id : a.tables.position.count * types;
      store_result(a.word_keys + token, static_cast<int32_t>(has_word ? rows.word_id : words));
      store_result(a.pair_keys + token, static_cast<int32_t>(pair));
    }
    const RawPart<T, L> grad_out(static_cast<const T*>(a.grad_out) + token * cols, lane, cols);
    const float mean = a.mean[token], rstd = a.rstd[token];
    const uint32_t kept = kept_of_part<L>(dropout, token, lane, cols);

    Part<L> normalised, grad;
    load_sum<L>(rows, lane, cols, normalised);
#pragma unroll
    for (int i = 0; i < L::kItems; ++i) {
      float products[L::kWidth];
#pragma unroll
      for (int j = 0; j < L::kWidth; ++j) {
        normalised[i][j] = (normalised[i][j] - mean) * rstd;
        grad[i][j] = grad_out.at(i, j) * dropout_factor<L>(dropout, kept, i, j);
        products[j] = grad[i][j] * normalised[i][j];
      }
      add_to_sums(shared, kWeight, group, i, lane, products);
      add_to_sums(shared, kBias, group, i, lane, grad[i]);
    }
    input_gradient<L>(grad, normalised, static_cast<const P*>(a.weight), rstd, lane, cols, shared.scratch);
    T* grad_sum = static_cast<T*>(a.grad_sum) + token * cols;
#pragma unroll
    for (int i = 0; i < L::kItems; ++i) store_item<L>(grad_sum, i, lane, cols, grad[i]);
  }
  store_partials(shared, cols, a.partials);
}

// Calls `body` with the C++ types of the dtypes, as `body(Type<T>{}, Type<P>{})`.
template <typename Body>
void with_types(const Call& call, EmbeddingLayerNormDtypes dtypes, Body body) {
  if (dtypes.weight != Dtype::float32 && dtypes.weight != dtypes.table) call.fail("unsupported combination of dtypes");
  with_type(dtypes.table, [&](auto table) {
    if (dtypes.weight == Dtype::float32) {
      body(table, Type<float>{});
    } else {
      body(table, table);
    }
  });
}

bool tables_on_16_bytes(const EmbeddingTables& tables) {
  return on_16_bytes(tables.word.rows, tables.position.rows, tables.token_type.rows);
}

}  // namespace

void embedding_layer_norm_forward(const EmbeddingLayerNormForward& a, EmbeddingLayerNormDtypes dtypes, Launch launch) {
  const Call call(launch, "embedding_layer_norm forward", {{"tokens", a.tokens}, {"columns", a.cols}});
  if (a.cols < 1 || a.cols > kLayerNormMaxCols) call.fail("unsupported width");
  if (a.tokens == 0) return;
  with_types(call, dtypes, [&](auto table, auto parameter) {
    using T = typename decltype(table)::type;
    using P = typename decltype(parameter)::type;
    const bool aligned = tables_on_16_bytes(a.tables) && on_16_bytes(a.out, a.weight, a.bias);
    with_layout<sizeof(T)>(a.cols, aligned, [&](auto layout) {
      using L = decltype(layout);
      call.launch(forward_kernel<T, P, L>, blocks_for(a.tokens, L::kRows), L::kBlock, sizeof(Scratch), a,
                  dropout_of(a.seed, a.dropout_p));
    });
  });
}

void embedding_layer_norm_backward(const EmbeddingLayerNormBackward& a, EmbeddingLayerNormDtypes dtypes,
                                   Launch launch) {
  const Call call(launch, "embedding_layer_norm backward",
                  {{"tokens", a.tokens},
                   {"columns", a.cols},
                   {"words", a.tables.word.count},
                   {"positions", a.tables.position.count},
                   {"token types", a.tables.token_type.count}});
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (a.cols < 1 || a.cols > kLayerNormMaxCols) call.fail("unsupported width");
  const int64_t words = a.tables.word.count, positions = a.tables.position.count, types = a.tables.token_type.count;
  if (words > kMost || positions > kMost || types > kMost || positions * types > kMost) {
    call.fail("rows are not to be counted in 32 bits");
  }
  const int64_t partials = layer_norm_partials(a.tokens, a.cols);
  with_types(call, dtypes, [&](auto table, auto parameter) {
    using T = typename decltype(table)::type;
    using P = typename decltype(parameter)::type;
    if (partials == 0) return;
    const bool aligned = tables_on_16_bytes(a.tables) && on_16_bytes(a.grad_out, a.weight, a.grad_sum);
    with_layout<sizeof(T)>(a.cols, aligned, [&](auto layout) {
      using L = decltype(layout);
      call.launch(backward_kernel<T, P, L>, static_cast<unsigned>(partials), L::kBlock,
                  sizeof(BackwardShared<L, kSums>), a, dropout_of(a.seed, a.dropout_p));
    });
  });
  column_sums(call,
              {a.partials, partials, a.cols, kSums, {a.grad_weight, a.grad_bias}, {dtypes.weight, dtypes.weight}});
}

}  // namespace earlybert
