// The least power of two that is no smaller than x; 1 for x below 1.
#pragma once

#include <cstdint>

namespace fastcnn {

inline int64_t power_of_two_up(int64_t x) {
  int64_t result = 1;
  while (result < x) result *= 2;
  return result;
}

}  // namespace fastcnn
