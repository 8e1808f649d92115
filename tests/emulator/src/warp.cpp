#include "emulator/warp.h"

namespace fastcnn::emulator {
namespace {

// The lane that a lane reads from, or the lane itself where the source lies outside its segment (PTX ISA,
// shfl.sync).
template <ShuffleMode Mode>
int source_lane(int lane, const Shuffle& shuffle) {
  const int first = lane & ~(shuffle.width - 1);
  const int last = first + shuffle.width - 1;
  if constexpr (Mode == ShuffleMode::kIndex) return first + (shuffle.operand & (shuffle.width - 1));
  const int operand = shuffle.operand & (kWarpSize - 1);
  if constexpr (Mode == ShuffleMode::kUp) return lane - operand < first ? lane : lane - operand;
  if constexpr (Mode == ShuffleMode::kDown) return lane + operand > last ? lane : lane + operand;
  return (lane ^ operand) > last ? lane : lane ^ operand;
}

struct Vote {
  bool predicate;
  uint32_t result;
};

void run_vote(void* const (&payloads)[kWarpSize], uint32_t lanes) {
  ++current.counters.votes;
  uint32_t result = 0;
  for (int i = 0; i < kWarpSize; ++i) {
    if (payloads[i] != nullptr && static_cast<Vote*>(payloads[i])->predicate) result |= 1u << i;
  }
  for (int i = 0; i < kWarpSize; ++i) {
    if (((lanes >> i) & 1u) != 0) static_cast<Vote*>(payloads[i])->result = result;
  }
}

void run_warp_barrier(void* const (&)[kWarpSize], uint32_t lanes) {
  if (lanes != live_lanes()) fail("the emulator knows __syncwarp of a whole warp only");
  ++current.counters.warp_barriers;
  order_warp();
}

}  // namespace

template <ShuffleMode Mode>
void run_shuffle(void* const (&payloads)[kWarpSize], uint32_t lanes) {
  ++current.counters.shuffles;
  for (int i = 0; i < kWarpSize; ++i) {
    if (((lanes >> i) & 1u) == 0) continue;
    Shuffle& shuffle = *static_cast<Shuffle*>(payloads[i]);
    if (shuffle.width < 1 || shuffle.width > kWarpSize || (shuffle.width & (shuffle.width - 1)) != 0) {
      fail("a shuffle's width must be a power of two up to 32, but is " + std::to_string(shuffle.width));
    }
    const int source = source_lane<Mode>(i, shuffle);
    if (((lanes >> source) & 1u) == 0) {
      fail("a shuffle of lane " + std::to_string(i) + " reads from lane " + std::to_string(source) +
           ", which takes no part in it");
    }
    shuffle.result = static_cast<Shuffle*>(payloads[source])->value;
  }
}

template void run_shuffle<ShuffleMode::kIndex>(void* const (&)[kWarpSize], uint32_t);
template void run_shuffle<ShuffleMode::kUp>(void* const (&)[kWarpSize], uint32_t);
template void run_shuffle<ShuffleMode::kDown>(void* const (&)[kWarpSize], uint32_t);
template void run_shuffle<ShuffleMode::kXor>(void* const (&)[kWarpSize], uint32_t);

uint32_t ballot(const char* name, uint32_t mask, bool predicate, Where where) {
  Vote vote{predicate, 0};
  warp_collective(name, mask, &vote, &run_vote, where);
  return vote.result;
}

void sync_warp(uint32_t mask, Where where) {
  warp_collective("__syncwarp", mask, nullptr, &run_warp_barrier, where);
}

}  // namespace fastcnn::emulator
