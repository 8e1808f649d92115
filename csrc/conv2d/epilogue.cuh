// What happens to a finished sum before the single rounding: bias, then activation. Every fprop kernel ends
// here.
#pragma once

#include <cuda_runtime.h>

#include "common/dtype.h"
#include "common/memory.cuh"
#include "conv2d/problem.h"

namespace fastcnn {

// relu keeps NaN, as torch does: NaN < 0 is false.
template <class Acc>
__device__ inline Acc activate(Acc x, Activation activation) {
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu:
      return x < Acc(0) ? Acc(0) : x;
    case Activation::kSigmoid:
      return Acc(1) / (Acc(1) + exp(-x));
    case Activation::kTanh:
      return tanh(x);
  }
  return x;
}

// Bias and activation of output channel k. A null bias is no bias.
template <class T>
__device__ inline T epilogue(accumulator_t<T> sum, const T* bias, int k, Activation activation) {
  if (bias != nullptr) sum += to_accumulator(load_global(bias + k));
  return from_accumulator<T>(activate(sum, activation));
}

}  // namespace fastcnn
