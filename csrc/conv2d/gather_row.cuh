// From the layout of mma's sums to runs of 8 columns, which one lane can store as 16 bytes, or to lanes that
// hold neighbouring columns of a row, which a warp stores together.
#pragma once

#include <cuda_runtime.h>

namespace fastcnn {

// Four rows of 8 columns, of which each of 4 lanes holds 2 columns of all, become one row of 8 columns a
// lane: lane t gets row t.
template <class Word>  // of 4 bytes
__device__ inline void gather_row(const Word (&pairs)[4][2], int t, Word (&row)[8]) {
  constexpr unsigned kAll = 0xffffffffu;
  Word half[2][2][2];  // [row of t's half][source t, t ^ 2][column]
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const Word kept = t & 2 ? pairs[i + 2][j] : pairs[i][j];
      const Word sent = t & 2 ? pairs[i][j] : pairs[i + 2][j];
      half[i][0][j] = kept;
      half[i][1][j] = __shfl_xor_sync(kAll, sent, 2);
    }
  }
#pragma unroll
  for (int source = 0; source < 2; ++source) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const Word kept = t & 1 ? half[1][source][j] : half[0][source][j];
      const Word sent = t & 1 ? half[0][source][j] : half[1][source][j];
      const Word got = __shfl_xor_sync(kAll, sent, 1);
      // Of the pair of lanes t, t ^ 1 the even one's columns come first.
      half[0][source][j] = t & 1 ? got : kept;
      half[1][source][j] = t & 1 ? kept : got;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      // Columns 0..3 are lanes 0 and 1's.
      row[i * 2 + j] = t & 2 ? half[i][1][j] : half[i][0][j];
      row[4 + i * 2 + j] = t & 2 ? half[i][0][j] : half[i][1][j];
    }
  }
}

// Eight rows of 32 columns, of which lane 4 * r + t holds columns 8 * n + 2 * t + i of row r as pairs[n][i]:
// afterwards the lane holds a column, gathered_column(lane), of all rows.
template <class Word>
__device__ inline void gather_column(const Word (&pairs)[4][2], int lane, Word (&rows)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) rows[i] = pairs[i / 2][i % 2];
  // Each step turns a bit of the row from the lane's number into the word's, and one of the column back.
#pragma unroll
  for (int bit = 4; bit >= 1; bit /= 2) {
    const int apart = bit * 4;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i & bit) continue;
      Word &low = rows[i], &high = rows[i + bit];
      const Word got = __shfl_xor_sync(0xffffffffu, lane & apart ? low : high, apart);
      (lane & apart ? low : high) = got;
    }
  }
}
__device__ inline int gathered_column(int lane) {
  return lane / 8 * 8 + lane % 4 * 2 + lane / 4 % 2;
}

}  // namespace fastcnn
