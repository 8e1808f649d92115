// The backward of the epilogue's activation, applied where dgrad and wgrad load the output gradient: no pass
// over it of its own.
#pragma once

#include <cuda_runtime.h>

#include "common/dtype.h"
#include "common/memory.cuh"
#include "conv2d/problem.h"

namespace fastcnn {

// dy times the derivative of silu or gelu at x. Not inlined, for the reason of activate_smooth.
template <class Acc>
[[gnu::noinline]] __device__ Acc smooth_grad(Acc dy, Acc x, Activation activation) {
  if (activation == Activation::kGelu) {
    const Acc cdf = Acc(0.5) * (Acc(1) + erf(x * Acc(0.70710678118654752440)));
    const Acc pdf = Acc(0.39894228040143267794) * exp(Acc(-0.5) * x * x);
    return dy * (cdf + x * pdf);
  }
  const Acc sigmoid = Acc(1) / (Acc(1) + exp(-x));
  return dy * sigmoid * (Acc(1) + x * (Acc(1) - sigmoid));
}

// dy times the activation's derivative. `saved` is the activation's result for relu, leaky_relu, sigmoid and
// tanh, and its argument for silu, gelu and hardswish (derived_from_output). The formulas, and what they give
// at the kinks, are torch's.
template <class Acc>
__device__ inline Acc activation_grad(Acc dy, Acc saved, Activation activation, Acc negative_slope) {
  switch (activation) {
    case Activation::kNone:
      return dy;
    case Activation::kRelu:
      return saved <= Acc(0) ? Acc(0) : dy;
    case Activation::kSigmoid:
      return dy * (Acc(1) - saved) * saved;
    case Activation::kTanh:
      return dy * (Acc(1) - saved * saved);
    case Activation::kHardswish:
      if (saved <= Acc(-3)) return Acc(0);
      return saved < Acc(3) ? dy * (saved * Acc(1.0 / 3) + Acc(0.5)) : dy;
    case Activation::kLeakyRelu:
      return saved > Acc(0) ? dy : dy * negative_slope;
    default:
      return smooth_grad(dy, saved, activation);
  }
}

// The gradient at the activation's argument, rounded to T.
template <class T, int V>
__device__ inline Vector<T, V> through_activation(const GradActivation& activation, const Vector<T, V>& grad,
                                                  const Vector<T, V>& saved) {
  using Acc = accumulator_t<T>;
  Vector<T, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    result[v] = from_accumulator<T>(activation_grad(to_accumulator(grad[v]), to_accumulator(saved[v]),
                                                    activation.activation,
                                                    activation.negative_slope.template in<Acc>()));
  }
  return result;
}

// V neighbouring elements of the gradient at the activation's argument; zeros where the predicate is false.
// `offset` counts from the start of grad, and so of saved.
template <int V, class T>
__device__ inline Vector<T, V> load_grad_if(bool predicate, const GradActivation& activation, const T* grad,
                                            int64_t offset) {
  const Vector<T, V> values = load_global_if<V>(predicate, grad + offset);
  if (activation.saved == nullptr) return values;
  const Vector<T, V> saved = load_global_if<V>(predicate, static_cast<const T*>(activation.saved) + offset);
  return through_activation(activation, values, saved);
}

}  // namespace fastcnn
