// Overlapping windows walked downwards: what the rows of a column of windows leave behind, kept in registers
// so that every input row is reduced along its columns once, however many windows hold it.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/dtype.h"
#include "common/memory.cuh"

namespace fastcnn {

// The maximum of V channels over a part of a window, and its tap. Parts are taken in row-major order, and the
// order rules are torch's: the first of equal values wins, a NaN beats every number and the last NaN wins.
template <class Acc, int V>
struct MaxPart {
  Acc value[V];
  int tap[V];

  // Nothing seen yet: a window of nothing but -inf reports its first tap.
  __device__ void clear(int first_tap) {
#pragma unroll
    for (int i = 0; i < V; ++i) {
      value[i] = static_cast<Acc>(-INFINITY);
      tap[i] = first_tap;
    }
  }
  __device__ void take(int i, Acc candidate, int candidate_tap) {
    if (candidate > value[i] || candidate != candidate) {
      value[i] = candidate;
      tap[i] = candidate_tap;
    }
  }
  template <class T>
  __device__ void take(const Vector<T, V>& candidates, int candidate_tap) {
#pragma unroll
    for (int i = 0; i < V; ++i) take(i, to_accumulator(candidates[i]), candidate_tap);
  }
  // A later row, whose taps count from offset.
  __device__ void take_row(const MaxPart& row, int offset) {
#pragma unroll
    for (int i = 0; i < V; ++i) take(i, row.value[i], row.tap[i] + offset);
  }
  // Maxima of rows whose taps are one byte each, and count from offset.
  template <class T>
  __device__ void take_bytes(const Vector<T, V>& row, const Vector<uint8_t, V>& taps, int offset) {
#pragma unroll
    for (int i = 0; i < V; ++i) take(i, to_accumulator(row[i]), offset + taps[i]);
  }
  __device__ void shift_taps(int offset) {
#pragma unroll
    for (int i = 0; i < V; ++i) tap[i] += offset;
  }
  // For offsets, where the caller keeps them: as one byte each.
  __device__ Vector<uint8_t, V> tap_bytes() const {
    Vector<uint8_t, V> result;
#pragma unroll
    for (int i = 0; i < V; ++i) result[i] = static_cast<uint8_t>(tap[i]);
    return result;
  }
  template <class T>
  __device__ Vector<T, V> rounded() const {
    Vector<T, V> result;
#pragma unroll
    for (int i = 0; i < V; ++i) result[i] = from_accumulator<T>(value[i]);
    return result;
  }
};

// The same for 16-bit types, two channels to a register, values as they are and taps of 16 bits: two
// comparisons and three bitwise operations for a pair, where single channels take a conversion, two
// comparisons and two selections each. A NaN keeps its bits.
template <class T, int V>
struct PackedMaxPart {
  using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
  static constexpr int kPairs = V / 2;
  uint32_t value[kPairs];
  uint32_t tap[kPairs];

  static __device__ uint32_t both(int tap) { return static_cast<uint32_t>(tap) * 0x10001u; }
  static __device__ Pair as_pair(uint32_t bits) {
    Pair pair;
    memcpy(&pair, &bits, sizeof(pair));
    return pair;
  }

  __device__ void clear(int first_tap) {
    const Vector<T, 2> lowest{{from_accumulator<T>(-INFINITY), from_accumulator<T>(-INFINITY)}};
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      memcpy(&value[i], &lowest, sizeof(uint32_t));
      tap[i] = both(first_tap);
    }
  }
  __device__ void take_pair(int i, uint32_t candidates, uint32_t candidate_taps) {
    const Pair pair = as_pair(candidates);
    const uint32_t better = __hgt2_mask(pair, as_pair(value[i])) | __hneu2_mask(pair, pair);
    value[i] = (candidates & better) | (value[i] & ~better);
    tap[i] = (candidate_taps & better) | (tap[i] & ~better);
  }
  __device__ void take(const Vector<T, V>& candidates, int candidate_tap) {
    uint32_t pairs[kPairs];
    memcpy(pairs, &candidates, sizeof(pairs));
#pragma unroll
    for (int i = 0; i < kPairs; ++i) take_pair(i, pairs[i], both(candidate_tap));
  }
  __device__ void take_row(const PackedMaxPart& row, int offset) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) take_pair(i, row.value[i], row.tap[i] + both(offset));
  }
  __device__ void take_bytes(const Vector<T, V>& row, const Vector<uint8_t, V>& taps, int offset) {
    uint32_t pairs[kPairs];
    memcpy(pairs, &row, sizeof(pairs));
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const uint32_t pair = static_cast<uint32_t>(taps[2 * i]) | static_cast<uint32_t>(taps[2 * i + 1]) << 16;
      take_pair(i, pairs[i], pair + both(offset));
    }
  }
  __device__ void shift_taps(int offset) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) tap[i] += both(offset);
  }
  __device__ Vector<uint8_t, V> tap_bytes() const {
    Vector<uint8_t, V> result;
#pragma unroll
    for (int i = 0; i < V; ++i) result[i] = static_cast<uint8_t>(tap[i / 2] >> (i % 2 * 16));
    return result;
  }
  template <class U>
  __device__ Vector<U, V> rounded() const {
    Vector<U, V> result;
    memcpy(&result, value, sizeof(result));
    return result;
  }
};

// The sum likewise; one rounding, after the division.
template <class Acc, int V>
struct SumPart {
  Acc value[V];

  __device__ void clear(int) {
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] = Acc(0);
  }
  __device__ void take(int i, Acc term, int) { value[i] += term; }
  template <class T>
  __device__ void take(const Vector<T, V>& terms, int tap) {
#pragma unroll
    for (int i = 0; i < V; ++i) take(i, to_accumulator(terms[i]), tap);
  }
  __device__ void take_row(const SumPart& row, int) {
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] += row.value[i];
  }
  __device__ void shift_taps(int) {}
  __device__ void divide(Acc divisor) {
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] /= divisor;
  }
  template <class T>
  __device__ Vector<T, V> rounded() const {
    Vector<T, V> result;
#pragma unroll
    for (int i = 0; i < V; ++i) result[i] = from_accumulator<T>(value[i]);
    return result;
  }
};

// The type by which a kernel knows it: of V channels of T.
template <bool kMax, class T, int V>
struct PartOf {
  using type = SumPart<accumulator_t<T>, V>;
};
template <class T, int V>
struct PartOf<true, T, V> {
  using type =
      std::conditional_t<sizeof(T) == 2 && V % 2 == 0, PackedMaxPart<T, V>, MaxPart<accumulator_t<T>, V>>;
};

// Windows p_begin .. p_end - 1 of one column, K rows each at stride S, K >= S. Calls reduce(h, part) once for
// every row of the image that they hold, in order: it adds the row's taps to a cleared part. Then
// emit(p, window). first_column is the first tap of a row that lies in the image.
template <class Part, int K, int S, class Reduce, class Emit>
__device__ inline void roll_down(int p_begin, int p_end, int pad, int height, int first_column,
                                 Reduce&& reduce, Emit&& emit) {
  Part rows[K];
  const auto fill = [&](Part& part, int h) {
    part.clear(first_column);
    if (h >= 0 && h < height) reduce(h, part);
  };
#pragma unroll
  for (int r = 0; r < K - S; ++r) fill(rows[r], p_begin * S - pad + r);
  for (int p = p_begin; p < p_end; ++p) {
    const int top = p * S - pad;
#pragma unroll
    for (int r = K - S; r < K; ++r) fill(rows[r], top + r);
    Part window = rows[0];
    // Where row 0 is padding, nothing of it was taken: count from the first row of the image.
    if (top < 0) window.shift_taps(-top * K);
#pragma unroll
    for (int r = 1; r < K; ++r) window.take_row(rows[r], r * K);
    emit(p, window);
#pragma unroll
    for (int r = 0; r < K - S; ++r) rows[r] = rows[r + S];
  }
}

// The transpose: rows h_begin .. h_end - 1 of one column of the image gather from the windows that cover
// them. Calls contribute(p, sums) once for every window row p_begin .., which adds to sums[r] what window p
// gives to its row r; then emit(h, sums) for each row that no later window reaches. p_begin is the first
// window that covers h_begin, whether or not there are that many windows.
template <class Acc, int V, int K, int S, class Contribute, class Emit>
__device__ inline void roll_back(int p_begin, int p_count, int h_begin, int h_end, int pad,
                                 Contribute&& contribute, Emit&& emit) {
  Acc sums[K][V];
#pragma unroll
  for (int r = 0; r < K; ++r) {
#pragma unroll
    for (int i = 0; i < V; ++i) sums[r][i] = Acc(0);
  }
  for (int p = p_begin; p * S - pad < h_end; ++p) {
    if (p < p_count) contribute(p, sums);
#pragma unroll
    for (int r = 0; r < S; ++r) {
      const int h = p * S - pad + r;
      if (h >= h_begin && h < h_end) emit(h, sums[r]);
    }
#pragma unroll
    for (int r = 0; r < K; ++r) {
#pragma unroll
      for (int i = 0; i < V; ++i) sums[r][i] = r + S < K ? sums[r + S < K ? r + S : 0][i] : Acc(0);
    }
  }
}

}  // namespace fastcnn
