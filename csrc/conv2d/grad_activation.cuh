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
// at the kinks, are torch's. As in the epilogue, the activation is asked for once for all V elements.
template <class Acc, int V>
__device__ inline void activation_grad(Acc (&dy)[V], const Acc (&saved)[V], Activation activation,
                                       Acc negative_slope) {
  const auto each = [&](auto&& function) {
#pragma unroll
    for (int v = 0; v < V; ++v) dy[v] = function(dy[v], saved[v]);
  };
  switch (activation) {
    case Activation::kNone:
      return;
    case Activation::kRelu:
      return each([](Acc g, Acc y) { return y <= Acc(0) ? Acc(0) : g; });
    case Activation::kSigmoid:
      return each([](Acc g, Acc y) { return g * (Acc(1) - y) * y; });
    case Activation::kTanh:
      return each([](Acc g, Acc y) { return g * (Acc(1) - y * y); });
    case Activation::kHardswish:
      return each([](Acc g, Acc x) {
        if (x <= Acc(-3)) return Acc(0);
        return x < Acc(3) ? g * (x * Acc(1.0 / 3) + Acc(0.5)) : g;
      });
    case Activation::kLeakyRelu:
      return each([&](Acc g, Acc y) { return y > Acc(0) ? g : g * negative_slope; });
    default:
      return each([&](Acc g, Acc x) { return smooth_grad(g, x, activation); });
  }
}

// The gradient at the activation's argument, rounded to T.
template <class T, int V>
__device__ inline Vector<T, V> through_activation(const GradActivation& activation, const Vector<T, V>& grad,
                                                  const Vector<T, V>& saved) {
  using Acc = accumulator_t<T>;
  Acc dy[V], at[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    dy[v] = to_accumulator(grad[v]);
    at[v] = to_accumulator(saved[v]);
  }
  activation_grad(dy, at, activation.activation, activation.negative_slope.template in<Acc>());
  Vector<T, V> result;
#pragma unroll
  for (int v = 0; v < V; ++v) result[v] = from_accumulator<T>(dy[v]);
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
