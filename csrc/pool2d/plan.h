// Which pool kernel runs a problem, how wide and with how many threads: the only place that chooses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/chip.h"
#include "common/dtype.h"
#include "pool2d/problem.h"

namespace fastcnn {

// Threads of a block where each has its own items, and where several share one.
constexpr int kPoolThreads = 256;
constexpr int kPoolSplitThreads = 512;

// Shared memory of a split block: one accumulator per thread, and for maxima its row and column.
constexpr size_t pool2d_split_bytes(size_t accumulator_bytes, bool places) {
  return kPoolSplitThreads * (accumulator_bytes + (places ? 2 * sizeof(int32_t) : 0));
}

struct Pool2dPlan {
  std::string kernel;  // the name given to the launch
  std::string tile;    // what one thread does, in words
  std::string reason;
  int vector = 1;             // channels per thread, moved as one access
  int threads = 1;            // per block
  int outputs_per_block = 1;  // items (vectors of channels) that a block writes
  int splits = 1;             // threads that share one item's window
  size_t shared_bytes = 0;
  // Each launch has at most items_per_launch items, so that items can be counted in 32 bits; grid is the
  // number of blocks for all items.
  int64_t items = 0;
  int64_t items_per_launch = 0;
  int64_t grid = 0;
};

// vectors_fit says that every tensor of the call can be read and written 16 bytes of channels at a time (see
// pool2d_vectors_fit).
Pool2dPlan plan_pool2d(Pool2dOp op, const Pool2dProblem& problem, DType dtype, bool channels_last,
                       bool vectors_fit, const Chip& chip);

Pool2dPlan plan_pool2d(const Pool2dCall& call, const Chip& chip);

// Whether channels lie side by side in every tensor of the call, in whole 16-byte groups at aligned
// addresses.
bool pool2d_vectors_fit(const Pool2dCall& call);

}  // namespace fastcnn
