#include "linear.h"

#include "activation.h"
#include "few_rows.h"
#include "gemm.h"

namespace earlybert {
namespace EARLYBERT_ISA {

// Columns that one thread sums over all rows at a time, and rows that are summed before they join the total: adding
// thousands of values to one number in turn loses more than the sum of a few hundred of them does.
static constexpr int64_t kSumCols = 64;
static constexpr int64_t kSumRows = 64;

EARLYBERT_INLINE Activated<Vec> activate(Activation activation, Vec x) {
  switch (activation) {
    case Activation::gelu: return gelu<VecMath>(x);
    case Activation::gelu_tanh: return gelu_tanh<VecMath>(x);
    case Activation::relu: return relu<VecMath>(x);
    case Activation::none: break;
  }
  return {x, splat(1.0f)};
}

static inline Vec load_some(const Numbers& numbers, int64_t at, int64_t count) {
  return numbers.halves == nullptr ? load_some(numbers.floats + at, count) : load_some(numbers.halves + at, count);
}
static inline void store_some(const Numbers& numbers, int64_t at, Vec v, int64_t count) {
  if (numbers.halves == nullptr) {
    store_some(numbers.floats + at, v, count);
  } else {
    store_some(numbers.halves + at, v, count);
  }
}

// Adds the bias to what lies at `sums` and applies the activation. The result is put there, or where it is bfloat16 to
// y.
struct BiasAndActivation {
  const LinearForward& a;
  void operator()(float* sums, int64_t row, int64_t column, int64_t count) const {
    const bool half = a.y.halves != nullptr;
    const bool saves = a.preactivation.floats != nullptr || a.preactivation.halves != nullptr;
    for (int64_t i = 0; i < count; i += kVec) {
      Vec v = load_some(sums + i, count - i);
      if (a.bias != nullptr) {
        if (a.inputs.out_units == nullptr) {
          v += load_some(a.bias + column + i, count - i);
        } else {
          for (int64_t n = i; n < count && n < i + kVec; ++n) v[n - i] += a.bias[a.inputs.out_units[column + n]];
        }
      }
      if (a.activation != Activation::none) {
        if (half) v = to_bfloat16(v);  // backward knows no more of it
        if (saves) store_some(a.preactivation, row * a.inputs.out + column + i, v, count - i);
        v = activate(a.activation, v).value;
      }
      if (half) {
        store_some(a.y.halves + row * a.y_stride + column + i, v, count - i);
      } else {
        store_some(sums + i, v, count - i);
      }
    }
  }
};

// A product as the layer asks for it.
template <typename Epilogue>
static bool product(const LinearInputs& in, int64_t rows, int64_t cols, int64_t depth, const Factor& a, const Factor& b,
                    const Product& c, bool accumulate, const Epilogue& epilogue) {
  return with_kernel(in.products, [&](auto kernel) {
    return gemm<typename decltype(kernel)::type>(rows, cols, depth, a, b, c, accumulate, epilogue);
  });
}

bool linear_forward(const LinearForward& a) {
  const LinearInputs& in = a.inputs;
  const Factor x = {in.x, in.x_stride, 1, in.x_rows, nullptr, nullptr, nullptr};
  const Factor weight = {{in.weight, nullptr}, in.weight_stride, 1, in.out_units, in.in_units, nullptr, in.in_scale};
  const Product y = {a.y.floats, a.y_stride, nullptr};
  if (in.tokens <= kFewRows && in.products == Products::float32 && in.in_units == nullptr && in.in_scale == nullptr) {
    few_rows_product(in.tokens, in.out, in.in, x, weight, y, BiasAndActivation{a});
    return true;
  }
  return product(in, in.tokens, in.out, in.in, x, weight, y, false, BiasAndActivation{a});
}

// Multiplies a gradient by the slope of the activation that its argument went through, and computes that
// activation's value on the way. A gradient in bfloat16 is put in its place.
struct Slope {
  const LinearBackward& a;
  Numbers activated;
  void operator()(float* sums, int64_t row, int64_t column, int64_t count) const {
    const bool half = a.grad_x.halves != nullptr;
    if (a.activation == Activation::none && !half) return;
    const int64_t start = row * a.inputs.in + column;
    for (int64_t i = 0; i < count; i += kVec) {
      Vec grad = load_some(sums + i, count - i);
      if (a.activation != Activation::none) {
        const Activated<Vec> h = activate(a.activation, load_some(a.preactivation, start + i, count - i));
        store_some(activated, start + i, h.value, count - i);
        grad *= h.slope;
      }
      if (half) {
        store_some(a.grad_x.halves + row * a.grad_x_stride + column + i, grad, count - i);
      } else {
        store_some(sums + i, grad, count - i);
      }
    }
  }
};

static void sum_rows(const LinearBackward& a) {
  const LinearInputs& in = a.inputs;
#pragma omp parallel for schedule(static) if (in.tokens * in.out >= kParallelProducts)
  for (int64_t begin = 0; begin < in.out; begin += kSumCols) {
    const int64_t count = min(kSumCols, in.out - begin);
    float total[kSumCols] = {};
    for (int64_t first = 0; first < in.tokens; first += kSumRows) {
      float part[kSumCols] = {};
      const int64_t end = min(in.tokens, first + kSumRows);
      for (int64_t t = first; t < end; ++t) {
        const int64_t start = t * a.grad_y_stride + begin;
        for (int64_t c = 0; c < kSumCols; c += kVec) {
          store(part + c, load(part + c) + load_some(a.grad_y, start + c, count - c));
        }
      }
      for (int64_t c = 0; c < kSumCols; ++c) total[c] += part[c];
    }
    for (int64_t c = 0; c < count; ++c) a.grad_bias[at(in.out_units, begin + c)] = total[c];
  }
}

// Brings the gradient of the kept and scaled part of the weight to that of the whole, and sums up the scales' own. It
// is `picked`, (out, in), or where no columns are left out already in its place.
static void unpick(const LinearBackward& a, const float* picked) {
  const LinearInputs& in = a.inputs;
#pragma omp parallel for schedule(static) if (in.in * in.out >= kParallelProducts)
  for (int64_t begin = 0; begin < in.in; begin += kSumCols) {
    const int64_t count = min(kSumCols, in.in - begin);
    float total[kSumCols] = {};
    for (int64_t o = 0; o < in.out; ++o) {
      const int64_t row = at(in.out_units, o);
      const float* __restrict weight = in.weight + row * in.weight_stride;
      float* __restrict target = a.grad_weight + row * in.weight_columns;
      if (picked == nullptr) {
        for (int64_t c = 0; c < count; ++c) {
          total[c] += target[begin + c] * weight[begin + c];
          target[begin + c] *= in.in_scale[begin + c];
        }
        continue;
      }
      const float* source = picked + o * in.in + begin;
      for (int64_t c = 0; c < count; ++c) {
        const int64_t column = in.in_units[begin + c];
        target[column] = in.in_scale == nullptr ? source[c] : source[c] * in.in_scale[begin + c];
        total[c] += source[c] * weight[column];
      }
    }
    if (a.grad_in_scale != nullptr) {
      for (int64_t c = 0; c < count; ++c) a.grad_in_scale[begin + c] = total[c];
    }
  }
}

static void* allocate(int64_t numbers, int64_t size) {
  return std::malloc(static_cast<std::size_t>(max(numbers * size, 1)));
}

bool linear_backward(const LinearBackward& a) {
  const LinearInputs& in = a.inputs;
  const bool activated = a.activation != Activation::none, half = a.grad_x.halves != nullptr;
  const bool direct = in.in_units == nullptr;
  void* memory = activated ? allocate(in.tokens * in.in, half ? 2 : 4) : nullptr;
  const Numbers h = {half ? nullptr : static_cast<float*>(memory), half ? static_cast<uint16_t*>(memory) : nullptr};
  float* picked = direct ? nullptr : static_cast<float*>(allocate(in.out * in.in, 4));
  bool enough = (memory != nullptr || !activated) && (picked != nullptr || direct);

  const Factor grad_y = {a.grad_y, a.grad_y_stride, 1, nullptr, nullptr, nullptr, nullptr};
  const Factor weight = {{in.weight, nullptr}, 1, in.weight_stride, in.in_units, in.out_units, in.in_scale, nullptr};
  enough = enough && product(in, in.tokens, in.in, in.out, grad_y, weight,
                             Product{a.grad_x.floats, a.grad_x_stride, nullptr}, a.accumulate, Slope{a, h});

  if (in.out < in.weight_rows || in.in < in.weight_columns) {  // some units are left out
#pragma omp parallel for schedule(static) if (in.weight_rows * in.weight_columns >= kParallelProducts)
    for (int64_t row = 0; row < in.weight_rows; ++row) {
      std::memset(a.grad_weight + row * in.weight_columns, 0, sizeof(float) * in.weight_columns);
    }
    for (int64_t i = 0; a.grad_bias != nullptr && i < in.weight_rows; ++i) a.grad_bias[i] = 0.0f;
  }
  const Factor grad_y_columns = {a.grad_y, 1, a.grad_y_stride, nullptr, nullptr, nullptr, nullptr};
  const Factor x = activated ? Factor{h, 1, in.in, nullptr, nullptr, nullptr, nullptr}
                             : Factor{in.x, 1, in.x_stride, nullptr, in.x_rows, nullptr, nullptr};
  const Product grad_weight =
      direct ? Product{a.grad_weight, in.weight_columns, in.out_units} : Product{picked, in.in, nullptr};
  enough = enough && product(in, in.out, in.in, in.tokens, grad_y_columns, x, grad_weight, false, NoEpilogue{});
  if (enough && (picked != nullptr || in.in_scale != nullptr)) unpick(a, picked);
  if (a.grad_bias != nullptr) sum_rows(a);
  std::free(memory);
  std::free(picked);
  return enough;
}

bool linear_task(Products products, int64_t rows, int64_t cols, int64_t threads, int64_t task, int64_t* part) {
  return with_kernel(products, [&](auto kernel) {
    using Kernel = typename decltype(kernel)::type;
    const Split split = split_of<Kernel>(rows, cols, most_panels(Kernel::steps(Kernel::kDepth)), threads);
    if (task >= split.tasks()) return false;
    const Task own(split, task);
    part[0] = first_row<Kernel>(own.first_tile, split.tiles, rows);
    part[1] = first_row<Kernel>(own.end_tile, split.tiles, rows);
    part[2] = own.first_panel * Kernel::kCols;
    part[3] = min(cols, own.end_panel * Kernel::kCols);
    return true;
  });
}

}  // namespace EARLYBERT_ISA
}  // namespace earlybert
