// The warp's matrix instructions.
#pragma once

#include <cstdint>

#include "emulator/where.h"

namespace fastcnn::emulator {

#pragma GCC visibility push(hidden)

enum class MmaType { kFloat16, kBFloat16, kTf32 };

// d = a * b + c over the fragments of the 32 lanes; exact products, one rounding of each sum.
void multiply_matrices(MmaType type, float* d, const uint32_t* a, const uint32_t* b, const float* c,
                       Where where);

// `count` 8x8 matrices of 16-bit elements, a word of each per lane.
void load_matrices(int count, bool transposed, uint32_t* words, uint32_t shared_address, Where where);

#pragma GCC visibility pop

}  // namespace fastcnn::emulator
