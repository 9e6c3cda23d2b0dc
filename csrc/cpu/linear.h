// A linear layer on the units that are kept: y = act((x * s) W'^T + b') with W' and b' the kept rows and columns of
// W and b, and s a scale for each kept column (the gates of the units behind it). Nothing is copied to pick or to
// scale: it happens while the matrix product packs its factors.
#pragma once

#include <cstdint>

#include "../common/activation.h"
#include "instruction_sets.h"
#include "numbers.h"

namespace earlybert {

// What forward and backward are both given.
struct LinearInputs {
  int64_t tokens, in, out;      // `in` and `out`: kept columns and rows of the weight
  Numbers x;                    // rows of `in` numbers; null in backward where it came out of an activation
  int64_t x_stride;
  const int64_t* x_rows;        // (tokens,): which rows of x, or null: the first
  float* weight;                // (weight_rows, weight_columns), a row every weight_stride floats
  int64_t weight_rows, weight_stride, weight_columns;
  const int64_t* out_units;     // (out,): the kept rows, or null: all
  const int64_t* in_units;      // (in,): the kept columns, or null: all
  const float* in_scale;        // (in,), or null: 1
  Products products;
};

struct LinearForward {
  LinearInputs inputs;
  const float* bias;            // of all rows of the weight; or null
  Activation activation;
  Numbers preactivation;        // (tokens, out): written when there is an activation, bfloat16 if y is; or null
  Numbers y;                    // rows of y_stride numbers
  int64_t y_stride;
};

struct LinearBackward {
  LinearInputs inputs;          // x as in forward
  Numbers grad_y;               // rows of grad_y_stride numbers
  int64_t grad_y_stride;
  // The gradient of x, rows of grad_x_stride numbers: written, or, where it is float32, added to when `accumulate`.
  // When x came out of an activation, that of its argument, given as `preactivation`; x is then not read but computed
  // anew, and nothing may be added to.
  Numbers grad_x;
  int64_t grad_x_stride;
  bool accumulate;
  Activation activation;
  Numbers preactivation;        // (tokens, in); bfloat16 if grad_x is
  float* grad_weight;           // like the whole weight, 0 where it was not used
  float* grad_bias;             // (weight_rows,), likewise; or null
  float* grad_in_scale;         // (in,); null without in_scale
};

// Forward and backward return false when memory for scratch could not be had. `linear_task` writes, for tests, which
// part of a product (rows, cols) is a task, where so many threads work on it: the first row and the end of rows, and of
// columns. It returns false behind the last one.
#define EARLYBERT_DECLARE(ISA)                                                                          \
  namespace ISA {                                                                                       \
  bool linear_forward(const LinearForward&);                                                            \
  bool linear_backward(const LinearBackward&);                                                          \
  bool linear_task(Products, int64_t rows, int64_t cols, int64_t threads, int64_t task, int64_t* part); \
  }
EARLYBERT_FOR_EACH_ISA(EARLYBERT_DECLARE)
#undef EARLYBERT_DECLARE

}  // namespace earlybert
