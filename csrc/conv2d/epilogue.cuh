// What happens to a finished sum before the single rounding: bias, residual, activation. Every fprop kernel
// ends here.
#pragma once

#include <cuda_runtime.h>

#include "common/dtype.h"
#include "common/memory.cuh"
#include "conv2d/problem.h"

namespace fastcnn {

// The activations that take an exponential. Not inlined: an epilogue is unrolled over the elements of a
// thread, and a kernel with as many copies of these would not fit the instruction cache.
template <class Acc>
[[gnu::noinline]] __device__ Acc activate_smooth(Acc x, Activation activation) {
  if (activation == Activation::kTanh) return tanh(x);
  if (activation == Activation::kGelu) return Acc(0.5) * x * (Acc(1) + erf(x * Acc(0.70710678118654752440)));
  const Acc denominator = Acc(1) + exp(-x);
  return (activation == Activation::kSilu ? x : Acc(1)) / denominator;
}

// relu, leaky_relu and hardswish keep NaN, as torch does: comparisons with NaN are false.
template <class Acc>
__device__ inline Acc activate(Acc x, Activation activation, Acc negative_slope) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return x < Acc(0) ? Acc(0) : x;
    case Activation::kLeakyRelu:
      return x < Acc(0) ? x * negative_slope : x;
    case Activation::kHardswish:
      return x * fmin(fmax(x + Acc(3), Acc(0)), Acc(6)) * Acc(1.0 / 6);
    default:
      return activate_smooth(x, activation);
  }
}

// The bias of output channel k; a null bias is zero.
template <class T>
__device__ inline accumulator_t<T> load_bias(const Epilogue& epilogue, int k) {
  const T* bias = static_cast<const T*>(epilogue.bias);
  return bias == nullptr ? accumulator_t<T>(0) : to_accumulator(load_global(bias + k));
}

// Finishes V neighbouring elements of the output, which lie at `offset` from its start: what is stored there.
// The caller stores it; the preactivation is stored here.
template <class T, int V>
__device__ inline Vector<T, V> finish(const Epilogue& epilogue, const accumulator_t<T> (&sum)[V],
                                      const accumulator_t<T> (&bias)[V], int64_t offset) {
  accumulator_t<T> value[V];
#pragma unroll
  for (int v = 0; v < V; ++v) value[v] = sum[v] + bias[v];
  if (epilogue.residual != nullptr) {
    const Vector<T, V> residual = load_global<V>(static_cast<const T*>(epilogue.residual) + offset);
#pragma unroll
    for (int v = 0; v < V; ++v) value[v] += to_accumulator(residual[v]);
  }
  Vector<T, V> result;
  if (epilogue.preactivation != nullptr) {
#pragma unroll
    for (int v = 0; v < V; ++v) result[v] = from_accumulator<T>(value[v]);
    store_global<V>(static_cast<T*>(epilogue.preactivation) + offset, result);
  }
#pragma unroll
  for (int v = 0; v < V; ++v) {
    result[v] = from_accumulator<T>(
        activate(value[v], epilogue.activation, epilogue.negative_slope.template in<accumulator_t<T>>()));
  }
  return result;
}

}  // namespace fastcnn
