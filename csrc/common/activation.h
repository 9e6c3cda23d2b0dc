// The activations of a feed-forward block and their derivatives, on whatever `Math` computes with: one float (Scalar,
// below) or a register of them (csrc/cpu/activation.h). `Math` has a type V with arithmetic, comparisons and ?:, and
//
//   V magnitude(V x)      |x|
//   V exp_negative(V x)   e^x for x <= 0
//   V inverse(V x)        1 / x for x >= 1
#pragma once

#include <cmath>

#include "macros.h"

namespace earlybert {

// The order is that of ACTIVATIONS in earlybert_kernels/backends/__init__.py.
enum class Activation : int { none, gelu, gelu_tanh, relu };

// An activation's value and derivative.
template <typename V>
struct Activated {
  V value, slope;
};

// x Phi(x) with the normal distribution Phi, and Phi(x) + x phi(x). For t = |x|, Phi(-t) = e^(-t^2/2) R(t) with R
// smooth: R is a polynomial of degree 8 in 1 / (1 + 0.3 t), fitted to a relative error of 6e-8 on [0, 14].
template <typename Math, typename V = typename Math::V>
EARLYBERT_HOST_DEVICE Activated<V> gelu(V x) {
  const V t = Math::magnitude(x);
  const V u = Math::inverse(t * 0.3f + 1.0f);
  const V e = Math::exp_negative(t * t * -0.5f);
  V p = u * 3.837827817e-02f - 1.691660592e-01f;
  p = p * u + 2.286599794e-01f;
  p = p * u - 7.650636953e-02f;
  p = p * u + 1.425354560e-01f;
  p = p * u + 9.468354935e-02f;
  p = p * u + 1.219203362e-01f;
  p = p * u + 1.194876897e-01f;
  p = p * u + 7.168838407e-06f;
  const V tail = p * e;  // Phi(-t)
  const V phi = x < 0.0f ? tail : 1.0f - tail;
  return {x * phi, phi + x * (e * 0.398942280f)};
}

// x sigmoid(2 y) with y = sqrt(2 / pi) (x + 0.044715 x^3), which is x (1 + tanh y) / 2.
template <typename Math, typename V = typename Math::V>
EARLYBERT_HOST_DEVICE Activated<V> gelu_tanh(V x) {
  const V most = V{} + 64.0f;
  const V t = x < -most ? -most : x > most ? most : x;  // its cube would overflow
  const V square = t * t;
  const V y = t * (square * 0.0713548163f + 1.59576912f);
  const V e = Math::exp_negative(-Math::magnitude(y));
  const V small = e * Math::inverse(e + 1.0f);  // sigmoid(-|2 y|)
  const V sigmoid = y < 0.0f ? small : 1.0f - small;
  const V grad_y = square * 0.214064449f + 1.59576912f;
  return {x * sigmoid, sigmoid + t * (sigmoid * (1.0f - sigmoid) * grad_y)};
}

template <typename Math, typename V = typename Math::V>
EARLYBERT_HOST_DEVICE Activated<V> relu(V x) {
  return {x < 0.0f ? V{} : x, x > 0.0f ? V{} + 1.0f : V{}};
}

// One float. On a GPU the hardware's base-2 exponential and reciprocal, which are off by 2 and 1 units in the last
// place where it matters: the exponential's error grows with |x|, but e^x shrinks faster. They take subnormal numbers
// for 0, which here is as good, and saves the six instructions an element that `__expf` and `__fdividef` spend on them.
struct Scalar {
  using V = float;

  EARLYBERT_HOST_DEVICE float magnitude(float x) { return fabsf(x); }
  EARLYBERT_HOST_DEVICE float exp_negative(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
    return y;
#else
    return expf(x);
#endif
  }
  EARLYBERT_HOST_DEVICE float inverse(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return 1.0f / x;
#endif
  }
};

}  // namespace earlybert
