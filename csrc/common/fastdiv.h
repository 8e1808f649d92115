// Division of 32-bit values by a divisor known at launch, as one high multiplication and a shift.
// Source: T. Granlund, P. L. Montgomery, "Division by Invariant Integers using Multiplication", PLDI 1994.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fastcnn {

// Exact for dividends in [0, 2^31) and divisors in [1, 2^31).
class FastDiv {
 public:
  FastDiv() = default;
  explicit FastDiv(int divisor) : divisor_(static_cast<uint32_t>(divisor)) {
    while ((uint64_t{1} << shift_) < divisor_) ++shift_;
    multiplier_ =
        static_cast<uint32_t>(((uint64_t{1} << 32) * ((uint64_t{1} << shift_) - divisor_)) / divisor_ + 1);
  }

  __host__ __device__ int divide(int dividend) const {
    const uint32_t n = static_cast<uint32_t>(dividend);
    const uint32_t high = static_cast<uint32_t>((uint64_t{n} * multiplier_) >> 32);
    return static_cast<int>((high + n) >> shift_);
  }
  __host__ __device__ int divide(int dividend, int& remainder) const {
    const int quotient = divide(dividend);
    // Unsigned: of a dividend out of range the results mean nothing, but may be computed and thrown away.
    remainder =
        static_cast<int>(static_cast<uint32_t>(dividend) - static_cast<uint32_t>(quotient) * divisor_);
    return quotient;
  }
  __host__ __device__ int divisor() const { return static_cast<int>(divisor_); }

 private:
  uint32_t divisor_ = 1;
  uint32_t multiplier_ = 1;
  uint32_t shift_ = 0;
};

}  // namespace fastcnn
