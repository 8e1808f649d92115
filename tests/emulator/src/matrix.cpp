#include "emulator/matrix.h"

#include <string>

#include "emulator/engine.h"
#include "emulator/float16.h"
#include "emulator/shared_memory.h"

namespace fastcnn::emulator {
namespace {

struct Fragments {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
  const float* c;
};

template <MmaType Type>
float element(uint32_t word, int half) {
  const auto bits = static_cast<uint16_t>(word >> (16 * half));
  if constexpr (Type == MmaType::kFloat16) return half_bits_to_float(bits);
  if constexpr (Type == MmaType::kBFloat16) return bfloat16_bits_to_float(bits);
  return bits_float(word & ~0x1FFFu);  // the hardware looks at no more bits than tf32 has
}

void need_whole_warp(const char* name, uint32_t lanes) {
  if (lanes != ~0u) fail(std::string(name) + " needs all 32 lanes of the warp, but some have ended");
}

template <MmaType Type>
void run_mma(void* const (&payloads)[kWarpSize], uint32_t lanes) {
  need_whole_warp("mma.sync", lanes);
  ++current.counters.mmas;
  constexpr int kPacked = Type == MmaType::kTf32 ? 1 : 2;  // elements of consecutive k in one word
  constexpr int kDepth = 8 * kPacked;
  float a[16][kDepth];
  float b[kDepth][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Fragments& fragments = *static_cast<Fragments*>(payloads[lane]);
    const int group = lane / 4;
    const int t = lane % 4;
    for (int word = 0; word < 4; ++word) {
      for (int half = 0; half < kPacked; ++half) {
        a[group + 8 * (word % 2)][kPacked * (t + 4 * (word / 2)) + half] =
            element<Type>(fragments.a[word], half);
      }
    }
    for (int word = 0; word < 2; ++word) {
      for (int half = 0; half < kPacked; ++half) {
        b[kPacked * (t + 4 * word) + half][group] = element<Type>(fragments.b[word], half);
      }
    }
  }
  double sums[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < kDepth; ++k) {
      for (int column = 0; column < 8; ++column) {
        sums[row][column] += static_cast<double>(a[row][k]) * static_cast<double>(b[k][column]);
      }
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Fragments& fragments = *static_cast<Fragments*>(payloads[lane]);
    for (int i = 0; i < 4; ++i) {
      const double sum = sums[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
      fragments.d[i] = static_cast<float>(sum + static_cast<double>(fragments.c[i]));
    }
  }
}

struct Rows {
  uint32_t address;
  uint32_t* words;
};

template <int Count, bool Transposed>
void run_ldmatrix(void* const (&payloads)[kWarpSize], uint32_t lanes) {
  need_whole_warp("ldmatrix", lanes);
  ++current.counters.matrix_loads;
  count_shared_load(Count * 128);
  for (int i = 0; i < Count; ++i) {
    uint16_t matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      memcpy(matrix[row], shared_buffer + static_cast<Rows*>(payloads[8 * i + row])->address, 16);
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int row = lane / 4;
      const int column = 2 * (lane % 4);
      const uint32_t low = Transposed ? matrix[column][row] : matrix[row][column];
      const uint32_t high = Transposed ? matrix[column + 1][row] : matrix[row][column + 1];
      static_cast<Rows*>(payloads[lane])->words[i] = low | (high << 16);
    }
  }
}

template <int Count>
WarpFunction ldmatrix_function(bool transposed) {
  return transposed ? &run_ldmatrix<Count, true> : &run_ldmatrix<Count, false>;
}

}  // namespace

void multiply_matrices(MmaType type, float* d, const uint32_t* a, const uint32_t* b, const float* c,
                       Where where) {
  Fragments fragments{d, a, b, c};
  const WarpFunction run = type == MmaType::kFloat16    ? &run_mma<MmaType::kFloat16>
                           : type == MmaType::kBFloat16 ? &run_mma<MmaType::kBFloat16>
                                                        : &run_mma<MmaType::kTf32>;
  warp_collective("mma.sync", ~0u, &fragments, run, where);
}

void load_matrices(int count, bool transposed, uint32_t* words, uint32_t shared_address, Where where) {
  // A lane answers for the row whose address it gives.
  if (static_cast<int>(current.thread % kWarpSize) < 8 * count) {
    if (shared_address % 16 != 0) {
      fail("ldmatrix of a row at shared byte " + std::to_string(shared_address) + at(where) +
           ": rows must be aligned to 16 bytes");
    }
    note_shared_read<16>(shared_address, -1, where);
  }
  Rows rows{shared_address, words};
  const WarpFunction run = count == 1   ? ldmatrix_function<1>(transposed)
                           : count == 2 ? ldmatrix_function<2>(transposed)
                                        : ldmatrix_function<4>(transposed);
  warp_collective("ldmatrix", ~0u, &rows, run, where);
}

}  // namespace fastcnn::emulator
