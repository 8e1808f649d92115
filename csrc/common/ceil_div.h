// The number of parts of size b that cover a.
#pragma once

#include <cstdint>

namespace fastcnn {

inline constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

}  // namespace fastcnn
