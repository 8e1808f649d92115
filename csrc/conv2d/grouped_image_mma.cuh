// fprop and dgrad of a grouped convolution in half precision on tensor cores (mma.sync m16n8k16, fp32 sums).
//
// Walk: blocks, tiles and the box of pixels are those of grouped_image.cuh. A warp multiplies 64 pixels by
// 8 * NT filters of one group at a time: A = pixels x (tap, channel), straight from the box, B = weights,
// laid out once a block in the order of mma's fragments. Channels come in chunks: octets by ldmatrix where
// C/g is a multiple of 8, else quads by 4-byte loads; a step of 16 takes chunks of several taps where C/g is
// less, so that only the last step of a phase is padded. Padded chunks read zeros, not pixels: an infinity
// times a zero weight would be NaN. Sums are exchanged among the 4 lanes of a row, so that each lane ends
// with 8 filters of a pixel: one 16-byte store.
// Floor: bytes of the three tensors once; the tensor cores need 2*N*P*Q*K*(C/g)*R*S flops, which take less
// time than the bytes up to C/g = 32 at 3x3. Waste: 2 times the flops at K/g = 4 (8 columns), and the padding
// of a phase's last step: at 3x3 10/9 for C/g = 8, 12/9 for 4; at 1x1 2 and 4. Per byte: x is read 1 + halo
// times from memory, and R*S times per 8 * NT filters from shared memory (4 wavefronts for 16 pixels x 16).
// Registers (ptxas, bfloat16, the most of a kind; sm_80, sm_90a): 77, 78 at NT = 1, three blocks an SM; 100,
// 108 at NT = 2 and 127, 126 at NT = 4, two (fprop by octets at NT = 2: 80, three).
// Why: on FMA units C/g >= 8 needs more time than its bytes.
#pragma once

#include <cuda_runtime.h>

#include <cstring>

#include "common/launch.h"
#include "conv2d/epilogue.cuh"
#include "conv2d/gather_row.cuh"
#include "conv2d/grouped_box.cuh"
#include "conv2d/grouped_tile.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

namespace fastcnn::grouped {

inline constexpr int kMmaRows = 4;  // 16-pixel tiles of a warp at a time
static_assert(kMmaRows * 16 == kGroupedMmaPixels);

// A wide block of filters needs more registers than three blocks an SM leave.
template <bool Dgrad, int Chunk, int NT>
inline constexpr int kMmaBlocksPerSm = NT == 1 || (NT == 2 && Chunk == 8 && !Dgrad) ? 3 : 2;

template <class T>
struct MmaShared {
  SharedArray<T, kArena<T>> arena;             // the box, a vector of zeros, the weights' fragments
  SharedArray<int, kGroupedMmaSlots> seen;     // where a pixel of the tile sees tap 0 of the box
  SharedArray<int, kGroupedMaxChunks> chunks;  // from there to a chunk of channels of a tap; -1 for padding
  SharedArray<int, kGroupedMmaTaps> taps;      // the first reduction index of a tap (r * S + s), or -1
  SharedArray<float, kGroupedMmaFilters + 8> bias;
};

// An index in shared memory of the weight of column `out` (of the slab's filter blocks) at reduction index
// `k` of the step number `step`.
__device__ inline int fragment_index(int steps, int out, int step, int k) {
  const int lane = out % 8 * 4 + k % 8 / 2;
  return ((out / 8 * steps + step) * 32 + lane) * 4 + k / 8 * 2 + k % 2;
}

// Where the chunks of every tap that the box has stand in the order of reduction, and the taps' first
// reduction indices. The tables must hold -1 before.
template <class T, int Chunk>
__device__ inline void write_tables(MmaShared<T>& shared, const GroupedImageParams& params) {
  const GroupedAxis &axis_h = params.axis_h, &axis_w = params.axis_w;
  const int columns = axis_w.start[axis_w.phases];
  const int group_chunks = params.group_in / Chunk;
  for (int row = 0; row < axis_h.start[axis_h.phases]; ++row) {
    const int phase_h = axis_h.phase[row];
    for (int column = 0; column < columns; ++column) {
      const int phase_w = axis_w.phase[column];
      const int phase_columns = axis_w.start[phase_w + 1] - axis_w.start[phase_w];
      const int tap = (row - axis_h.start[phase_h]) * phase_columns + column - axis_w.start[phase_w];
      const int first = params.step_start[phase_h * axis_w.phases + phase_w] * 16 + tap * params.group_in;
      const int box = (axis_h.offset[row] * params.box.columns + axis_w.offset[column]) * params.box.pitch;
      for (int chunk = threadIdx.x; chunk < group_chunks; chunk += blockDim.x) {
        shared.chunks.store(first / Chunk + chunk, box + chunk * Chunk);
      }
      if (threadIdx.x == 0)
        shared.taps.store(axis_h.tap[row] * params.weight_s.divisor() + axis_w.tap[column], first);
    }
  }
}

// The weights of the slab in the order of fragments, E neighbours in memory at a time. The fragments must
// hold zeros before.
template <class T, bool Dgrad, int NT, int E>
__device__ inline void bring_fragments(MmaShared<T>& shared, int arena_start,
                                       const GroupedImageParams& params, int slab) {
  const int group_filters = params.weight_k.divisor(), taps = params.weight_taps.divisor();
  const int group_channels = params.weight_c.divisor();
  const int group_columns = params.group_blocks * 8 * NT;
  const int filters = min(params.slab_groups, params.groups - slab * params.slab_groups) * group_filters;
  const int runs = filters * params.weight_runs.divisor();
  const T* const data = static_cast<const T*>(params.weight.data) + static_cast<int64_t>(slab) *
                                                                        params.slab_groups * group_filters *
                                                                        params.weight.stride_n;
#pragma unroll 4
  for (int index = threadIdx.x; index < runs; index += blockDim.x) {
    int run, k, c, tap;
    const int filter = params.weight_runs.divide(index, run);
    const int slab_group = params.weight_k.divide(filter, k);
    if (params.weight_channels_inner) {
      tap = params.weight_c.divide(run * E, c);
    } else {
      c = params.weight_taps.divide(run * E, tap);
    }
    int64_t offset = filter * params.weight.stride_n;
    if (E > 1) {
      offset += run * E;
    } else {
      int s;
      const int r = params.weight_s.divide(tap, s);
      offset += c * params.weight.stride_c + r * params.weight.stride_h + s * params.weight.stride_w;
    }
    const Vector<T, E> values = load_global<E>(data + offset);
#pragma unroll
    for (int e = 0; e < E; ++e) {
      const int first = shared.taps.load(tap);
      const int reduction = first + (Dgrad ? k : c);
      // A tap that no pixel of a small image is reached by has no place.
      if (first >= 0) {
        const int column = slab_group * group_columns + (Dgrad ? c : k);
        shared.arena.store(arena_start + fragment_index(params.steps, column, reduction / 16, reduction % 16),
                           values[e]);
      }
      if (params.weight_channels_inner) {
        if (++c == group_channels) c = 0, ++tap;
      } else {
        if (++tap == taps) tap = 0, ++c;
      }
    }
  }
}

// The A fragments of 64 pixels x 16 reduction indices. `seen` holds what the lane's rows see: ldmatrix takes
// one address a lane, single loads need the rows l/4 and l/4 + 8.
template <class T, int Chunk>
struct PixelFragments;

template <class T>
struct PixelFragments<T, 8> {
  int seen[kMmaRows];
  __device__ PixelFragments(const MmaShared<T>& shared, int first_slot, int lane, int channel) {
#pragma unroll
    for (int m = 0; m < kMmaRows; ++m) seen[m] = shared.seen.load(first_slot + m * 16 + lane % 16) + channel;
  }
  __device__ void load(const MmaShared<T>& shared, int step, int lane, int zeros,
                       uint32_t (&a)[kMmaRows][4]) const {
    const int chunk = shared.chunks.load(step * 2 + lane / 16);
#pragma unroll
    for (int m = 0; m < kMmaRows; ++m) {
      ptx::ldmatrix_x4(a[m], shared.arena.address(chunk < 0 ? zeros : seen[m] + chunk));
    }
  }
};

template <class T>
struct PixelFragments<T, 4> {
  int seen[kMmaRows][2];
  __device__ PixelFragments(const MmaShared<T>& shared, int first_slot, int lane, int channel) {
#pragma unroll
    for (int m = 0; m < kMmaRows; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // The lane's two elements stand in the low or in the high half of a quad.
        seen[m][half] = shared.seen.load(first_slot + m * 16 + half * 8 + lane / 4) + channel + lane % 2 * 2;
      }
    }
  }
  __device__ void load(const MmaShared<T>& shared, int step, int lane, int /*zeros*/,
                       uint32_t (&a)[kMmaRows][4]) const {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int chunk = shared.chunks.load(step * 4 + k * 2 + lane % 4 / 2);
#pragma unroll
      for (int m = 0; m < kMmaRows; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t word = 0;
          if (chunk >= 0) {
            const auto pair = shared.arena.template load_vector<2>(seen[m][half] + chunk);
            memcpy(&word, &pair, sizeof(word));
          }
          a[m][k * 2 + half] = word;
        }
      }
    }
  }
};

// V of the 8 filters of a pixel that a lane holds.
template <class T, bool Dgrad, int V>
__device__ inline void store_filters(const GroupedImageParams& params, const float (&row)[8],
                                     const float (&bias)[8], int first, int64_t offset) {
  const Epilogue epilogue = Dgrad ? Epilogue{} : params.epilogue;
  float sums[V], biases[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    sums[v] = row[first + v];
    biases[v] = bias[first + v];
  }
  const int64_t at = offset + first * params.output.stride_c;
  store_global<V>(static_cast<T*>(params.output.data) + at, finish<T>(epilogue, sums, biases, at));
}

template <class T, bool Dgrad, int Chunk, int NT>
__global__ __launch_bounds__(kGroupedThreads, kMmaBlocksPerSm<Dgrad, Chunk, NT>) void image_mma_kernel(
    const __grid_constant__ GroupedImageParams params) {
  auto& shared = shared_memory<MmaShared<T>>();
  int slab;
  const int block_chunk = params.slabs.divide(static_cast<int>(blockIdx.x), slab);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int zeros = params.box.pixels.divisor() * params.box.pitch;
  const int weights = zeros + kVector<T>;
  const int block_weights = NT * params.steps * 128;

  for (int slot = threadIdx.x; slot < kGroupedMmaSlots; slot += blockDim.x) {
    const Slot at = slot_at(params, slot);
    shared.seen.store(slot, !at.valid
                                ? 0
                                : ((at.n * params.box.rows + at.h * params.pixel_rows) * params.box.columns +
                                   at.w * params.pixel_columns) *
                                      params.box.pitch);
  }
  for (int chunk = threadIdx.x; chunk < params.steps * (16 / Chunk); chunk += blockDim.x) {
    shared.chunks.store(chunk, -1);
  }
  if (!Dgrad) {
    for (int at = threadIdx.x; at < kGroupedMmaFilters + 8; at += blockDim.x) {
      const int filter = slab * params.slab_out + at;
      const bool exists = at < params.slab_out && filter < params.channels_out;
      shared.bias.store(at, exists ? load_bias<T>(params.epilogue, filter) : 0.0f);
    }
  }
  for (int tap = threadIdx.x; tap < params.weight_taps.divisor(); tap += blockDim.x)
    shared.taps.store(tap, -1);
  const int fragments = params.filter_blocks * block_weights + kVector<T>;
  for (int at = threadIdx.x * kVector<T>; at < fragments; at += blockDim.x * kVector<T>) {
    shared.arena.template store_vector<kVector<T>>(zeros + at, Vector<T, kVector<T>>{});
  }
  __syncthreads();
  write_tables<T, Chunk>(shared, params);
  __syncthreads();
  if (params.weight_dense) {
    bring_fragments<T, Dgrad, NT, kVector<T>>(shared, weights, params, slab);
  } else {
    bring_fragments<T, Dgrad, NT, 1>(shared, weights, params, slab);
  }

  const int items = params.filter_blocks * params.pixel_blocks;
  const int first_tile = block_chunk * params.tiles_per_block;
  const int last_tile = min(first_tile + params.tiles_per_block, params.tiles);
  for (int tile = first_tile; tile < last_tile; ++tile) {
    const TilePosition position = tile_at(params, tile);
    __syncthreads();
    bring_box<Dgrad>(shared.arena, 0, params.box, slab, position.image, position.box_h, position.box_w);
    __syncthreads();
    for (int item = warp; item < items; item += kGroupedThreads / 32) {
      int filter_block;
      const int first_slot = params.block_filters.divide(item, filter_block) * kGroupedMmaPixels;
      int group_block;
      const int slab_group = params.group_block_div.divide(filter_block, group_block);
      if (slab * params.slab_groups + slab_group >= params.groups) continue;
      const PixelFragments<T, Chunk> pixels(shared, first_slot, lane, slab_group * params.group_in);
      for (int phase = 0; phase < params.axis_h.phases * params.axis_w.phases; ++phase) {
        float sums[kMmaRows][NT][4] = {};
        for (int step = params.step_start[phase]; step < params.step_start[phase + 1]; ++step) {
          uint32_t a[kMmaRows][4];
          pixels.load(shared, step, lane, zeros, a);
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            const auto fragment = shared.arena.template load_vector<4>(
                weights + filter_block * block_weights + ((n * params.steps + step) * 32 + lane) * 4);
            uint32_t b[2];
            memcpy(b, &fragment, sizeof(b));
#pragma unroll
            for (int m = 0; m < kMmaRows; ++m) ptx::mma_m16n8k16<T>(sums[m][n], a[m], b, sums[m][n]);
          }
        }

        const int phase_h = phase / params.axis_w.phases, phase_w = phase % params.axis_w.phases;
#pragma unroll
        for (int set = 0; set < 2; ++set) {
          const Slot slot = slot_at(params, first_slot + set * 32 + lane % 4 * 8 + lane / 4);
          const int image = position.image + slot.n;
          const int h = (position.row + slot.h) * params.axis_h.phases + phase_h;
          const int w = (position.column + slot.w) * params.axis_w.phases + phase_w;
          const bool inside = slot.valid && image < params.image_n && h < params.out_h && w < params.out_w;
          const int64_t pixel =
              image * params.output.stride_n + h * params.output.stride_h + w * params.output.stride_w;
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            float pairs[4][2];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              pairs[j][0] = sums[set * 2 + j / 2][n][j % 2 * 2];
              pairs[j][1] = sums[set * 2 + j / 2][n][j % 2 * 2 + 1];
            }
            float row[8];
            gather_row(pairs, lane % 4, row);
            const int group_filter = (group_block * NT + n) * 8;
            const int left = params.group_out - group_filter;
            if (!inside) continue;
            const int slab_filter = slab_group * params.group_out + group_filter;
            const int64_t offset = pixel + (slab * params.slab_out + slab_filter) * params.output.stride_c;
            float bias[8] = {};
            if (!Dgrad) {
#pragma unroll
              for (int v = 0; v < 8; v += 4) {
                const auto part = shared.bias.template load_vector<4>(slab_filter + v);
#pragma unroll
                for (int u = 0; u < 4; ++u) bias[v + u] = part[u];
              }
            }
            if (params.vector_store && left >= 8) {
              store_filters<T, Dgrad, 8>(params, row, bias, 0, offset);
            } else {
#pragma unroll
              for (int v = 0; v < 8; ++v) {
                if (v < left) store_filters<T, Dgrad, 1>(params, row, bias, v, offset);
              }
            }
          }
        }
      }
    }
  }
}

template <class T, int Chunk, int NT>
void launch_mma_tile(const GroupedImageParams& params, bool dgrad, const LaunchConfig& config) {
  if (dgrad) {
    launch("conv2d::grouped_dgrad_mma", image_mma_kernel<T, true, Chunk, NT>, config, params);
  } else {
    launch("conv2d::grouped_fprop_mma", image_mma_kernel<T, false, Chunk, NT>, config, params);
  }
}

template <class T>
void launch_image_mma(const GroupedImageParams& params, bool dgrad, const GroupedPlan& plan,
                      cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.threads = plan.threads;
  config.shared_bytes = sizeof(MmaShared<T>);
  config.stream = stream;
  const auto with_chunk = [&](auto chunk) {
    constexpr int kChunk = decltype(chunk)::value;
    switch (plan.filter_run) {
      case 8:
        return launch_mma_tile<T, kChunk, 1>(params, dgrad, config);
      case 16:
        return launch_mma_tile<T, kChunk, 2>(params, dgrad, config);
      default:
        // Quads need more registers for their addresses: the planner gives them two blocks of 16 instead.
        if constexpr (kChunk == 8) return launch_mma_tile<T, kChunk, 4>(params, dgrad, config);
    }
  };
  if (params.group_in % 8 == 0) {
    with_chunk(std::integral_constant<int, 8>{});
  } else {
    with_chunk(std::integral_constant<int, 4>{});
  }
}

}  // namespace fastcnn::grouped
