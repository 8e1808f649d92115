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

// The bias of output channel k; a null bias is zero.
template <class T>
__device__ inline accumulator_t<T> load_bias(const T* bias, int k) {
  return bias == nullptr ? accumulator_t<T>(0) : to_accumulator(load_global(bias + k));
}

template <class T>
__device__ inline T epilogue(accumulator_t<T> sum, accumulator_t<T> bias, Activation activation) {
  return from_accumulator<T>(activate(sum + bias, activation));
}

template <class T>
__device__ inline T epilogue(accumulator_t<T> sum, const T* bias, int k, Activation activation) {
  return epilogue<T>(sum, load_bias(bias, k), activation);
}

}  // namespace fastcnn
