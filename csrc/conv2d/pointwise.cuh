// 1x1 convolution in half precision on tensor cores (mma.sync m16n8k16, fp32 sums): all passes, all layouts.
//
// Walk: a block takes items, tiles of the result (wgrad: of one split of the reduction), gridDim apart.
// Pieces of both operands, those of the next item right behind those of this one, stream through three stages
// of shared memory by cp.async, so that loads fly while sums are finished and stored. ldmatrix brings
// fragments, transposing where rows lie side by side. A warp owns 64 rows x 32 columns; in the small tile,
// for few results, four warps share 32 x 32 and take a quarter of each piece of the reduction, and their sums
// meet in shared memory, in order. Lanes exchange sums so that each stores 8 neighbouring columns, or, where
// these are no aligned vectors, each warp 32 neighbours: 64 bytes of a row a warp either way. The bias
// gradient is one more product, of the same A and ones, by the blocks of the first columns. Floor: bytes of
// the three tensors once, 2*N*P*Q*K*C flops. What the tiles read again comes from L2: A once for each tile of
// 128 (64, 32) columns, B for each of 128 (32) rows, a bias for each row from L1. Bound by memory at ResNet's
// 56x56 and 28x28 layers (51 to 102 flops a byte); beyond that by shared memory, 24 wavefronts for 16 mma,
// and the tensor cores. Registers (ptxas, bfloat16; sm_80, sm_90a): wide tile 128, 128, two blocks an SM;
// narrow 144, 148 and small 128, 127, three. Why: on FMA units 1x1 layers of 64 channels and more need a
// multiple of their bytes' time.
#pragma once

#include <cuda_runtime.h>

#include <cstring>
#include <type_traits>

#include "common/launch.h"
#include "conv2d/pointwise_operand.cuh"
#include "conv2d/pointwise_store.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

namespace fastcnn::pointwise {

template <class T, PointwiseTile Shape, bool AAcross, bool BAcross>
struct BlockTile {
  static constexpr PointwiseTileShape kShape = pointwise_shape(Shape);
  static constexpr int kThreads = kShape.threads(), kBlocks = kShape.blocks;
  static constexpr int kBM = kShape.rows, kBN = kShape.columns, kBK = kShape.depth;
  static constexpr int kColumnWarps = kShape.column_warps, kDepthWarps = kShape.depth_warps;
  static constexpr int kWarpRows = kBM / kShape.row_warps, kWarpColumns = kBN / kColumnWarps;
  static constexpr int kWarpSteps = kBK / kDepthWarps / 16;  // of a stage
  static constexpr int kMT = kWarpRows / 16, kNT = kWarpColumns / 8;
  static constexpr int kBT =
      (kMT + kColumnWarps - 1) / kColumnWarps;  // row tiles whose bias gradient a warp sums
  static constexpr int kUnits = kMT * 2;        // of 8 rows
  static_assert(kNT == 4 && kBT * kColumnWarps == kMT &&
                (kDepthWarps == 1 || (kDepthWarps == kUnits && kThreads == 32 * kDepthWarps)));
  using A = OperandTile<T, kBM, kBK, AAcross, kThreads>;
  using B = OperandTile<T, kBN, kBK, BAcross, kThreads>;
};

// Of each warp, unit and lane its 8 sums and the bias gradient's.
template <class Tile>
struct WarpSums {
  static constexpr int kLaneSums = 9;
  SharedArray<float, Tile::kDepthWarps * Tile::kUnits * kLaneSums * 32> sums;

  __device__ static int place(int warp, int unit, int i) {
    return ((warp * Tile::kUnits + unit) * kLaneSums + i) * 32 + threadIdx.x % 32;
  }
};
struct NoWarpSums {};

template <class Tile>
struct Shared : std::conditional_t<(Tile::kDepthWarps > 1), WarpSums<Tile>, NoWarpSums> {
  typename Tile::A::Stages a;
  typename Tile::B::Stages b;
};

// With what an activation saved beside the output gradient, which is A or B.
template <class Tile>
struct SharedSavedA : Shared<Tile> {
  typename Tile::A::Stages saved;
};
template <class Tile>
struct SharedSavedB : Shared<Tile> {
  typename Tile::B::Stages saved;
};

// The loads of a block, ahead of its products.
template <class Tile>
class LoadStream {
 public:
  __device__ explicit LoadStream(const PointwiseParams& params)
      : params_(params), a_(params.a), b_(params.b), item_(blockIdx.x) {
    enter();
  }

  // One piece of both operands to a stage, as one group of copies; an empty one past the block's last item.
  __device__ void bring(Shared<Tile>& shared, int stage) {
    if (item_ < params_.items) {
      a_.bring(shared.a, saved_a(), stage, step_, params_.reduction,
               [&] { return Item(params_, item_).rows; });
      b_.bring(shared.b, saved_b(), stage, step_, params_.reduction,
               [&] { return Item(params_, item_).columns; });
      if (++step_ == step_end_) {
        item_ += gridDim.x;
        enter();
      }
    }
    ptx::cp_async_commit();
  }

  // On this thread's own part of a stage that has arrived.
  __device__ void apply_activation(Shared<Tile>& shared, int stage) const {
    if (const auto* saved = saved_a()) a_.apply_activation(shared.a, *saved, stage);
    if (const auto* saved = saved_b()) b_.apply_activation(shared.b, *saved, stage);
  }

 private:
  __device__ typename Tile::A::Stages* saved_a() const {
    return params_.a.activation.saved == nullptr ? nullptr : &shared_memory<SharedSavedA<Tile>>().saved;
  }
  __device__ typename Tile::B::Stages* saved_b() const {
    return params_.b.activation.saved == nullptr ? nullptr : &shared_memory<SharedSavedB<Tile>>().saved;
  }

  __device__ void enter() {
    if (item_ >= params_.items) return;
    const Item item(params_, item_);
    step_ = item.step;
    step_end_ = item.step_end;
    a_.enter(item.rows);
    b_.enter(item.columns);
  }

  const PointwiseParams& params_;
  OperandLoader<typename Tile::A> a_;
  OperandLoader<typename Tile::B> b_;
  int item_, step_ = 0, step_end_ = 0;
};

// Two ones of T.
template <class T>
__device__ inline uint32_t pair_of_ones() {
  const Vector<T, 2> ones{{from_accumulator<T>(1.0f), from_accumulator<T>(1.0f)}};
  uint32_t word;
  memcpy(&word, &ones, sizeof(word));
  return word;
}

template <class T, class Tile>
__global__ __launch_bounds__(Tile::kThreads,
                             Tile::kBlocks) void mma_kernel(const __grid_constant__ PointwiseParams params) {
  using A = typename Tile::A;
  using B = typename Tile::B;
  constexpr int kMT = Tile::kMT, kNT = Tile::kNT, kBT = Tile::kBT;
  auto& shared = shared_memory<Shared<Tile>>();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int depth_warp = warp % Tile::kDepthWarps;
  const int column_warp = warp / Tile::kDepthWarps % Tile::kColumnWarps;
  const int row_warp = warp / Tile::kDepthWarps / Tile::kColumnWarps;
  const int warp_row = row_warp * Tile::kWarpRows, warp_column = column_warp * Tile::kWarpColumns;
  const int warp_l = depth_warp * Tile::kWarpSteps * 16;

  // Where this lane's rows of the first fragments lie in a stage: matrices of A run down the rows first,
  // those of B along the reduction.
  constexpr int kRowA = A::kAcross ? 1 : A::kPitch, kStepA = A::kAcross ? A::kPitch : 1;
  constexpr int kRowB = B::kAcross ? 1 : B::kPitch, kStepB = B::kAcross ? B::kPitch : 1;
  const int in_matrix = lane % 8, low = lane / 8 % 2 * 8, high = lane / 16 * 8;
  const int lane_a = (warp_row + low + (A::kAcross ? 0 : in_matrix)) * kRowA +
                     (warp_l + high + (A::kAcross ? in_matrix : 0)) * kStepA;
  const int lane_b = (warp_column + high + (B::kAcross ? 0 : in_matrix)) * kRowB +
                     (warp_l + low + (B::kAcross ? in_matrix : 0)) * kStepB;

  float sums[kMT][kNT][4] = {};
  float bias_sums[kBT][4] = {};
  // Without rows or columns of its own a warp multiplies nothing, but loads and waits with the others.
  constexpr int kMultiplies = 1, kSumsBias = 2;  // in one word: flags would take a register each
  int steps = 0, duties = 0;
  const auto enter = [&](int index) {
    const Item item(params, index);
    steps = item.step_end - item.step;
    const bool has_rows = item.rows.first + warp_row < item.rows.end;
    duties = has_rows && item.columns.first + warp_column < item.columns.end ? kMultiplies : 0;
    if (has_rows && params.bias_grad != nullptr && item.columns.first == 0) duties |= kSumsBias;
  };

  LoadStream<Tile> loads(params);
  int index = blockIdx.x, stage = 0;
  enter(index);
  // The first rounds only load: one copy of the loads' code serves all.
  for (int step = 1 - kPointwiseStages; index < params.items;) {
    ptx::cp_async_wait<kPointwiseStages - 2>();
    if (step >= 0) loads.apply_activation(shared, stage);
    __syncthreads();
    // The stage that every warp has left behind.
    loads.bring(shared, stage == 0 ? kPointwiseStages - 1 : stage - 1);
    const int current = stage;
    stage = stage == kPointwiseStages - 1 ? 0 : stage + 1;
    if (++step <= 0) continue;

    if (duties & kMultiplies) {
#pragma unroll
      for (int k = 0; k < Tile::kWarpSteps; ++k) {
        uint32_t a[kMT][4], b[kNT][2];
#pragma unroll
        for (int m = 0; m < kMT; ++m) {
          ptx::ldmatrix_x4<A::kAcross>(
              a[m], shared.a.address(current * A::kElements + lane_a + m * 16 * kRowA + k * 16 * kStepA));
        }
#pragma unroll
        for (int n = 0; n < kNT; n += 2) {
          uint32_t pair[4];
          ptx::ldmatrix_x4<B::kAcross>(
              pair, shared.b.address(current * B::kElements + lane_b + n * 8 * kRowB + k * 16 * kStepB));
          b[n][0] = pair[0], b[n][1] = pair[1];
          b[n + 1][0] = pair[2], b[n + 1][1] = pair[3];
        }
#pragma unroll
        for (int m = 0; m < kMT; ++m) {
#pragma unroll
          for (int n = 0; n < kNT; ++n) ptx::mma_m16n8k16<T>(sums[m][n], a[m], b[n], sums[m][n]);
        }
      }
    }
    if (duties & kSumsBias) {
      const uint32_t ones[2] = {pair_of_ones<T>(), pair_of_ones<T>()};
#pragma unroll
      for (int k = 0; k < Tile::kWarpSteps; ++k) {
#pragma unroll
        for (int i = 0; i < kBT; ++i) {
          uint32_t a[4];
          ptx::ldmatrix_x4<A::kAcross>(
              a, shared.a.address(current * A::kElements + lane_a + (column_warp * kBT + i) * 16 * kRowA +
                                  k * 16 * kStepA));
          ptx::mma_m16n8k16<T>(bias_sums[i], a, ones, bias_sums[i]);
        }
      }
    }
    if (step < steps) continue;

    const Item item(params, index);
    const int first_column = item.columns.first + warp_column;
    if constexpr (Tile::kDepthWarps == 1) {
      if (duties & kSumsBias) {
#pragma unroll
        for (int i = 0; i < kBT; ++i) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int row = item.rows.first + warp_row + (column_warp * kBT + i) * 16 + half * 8 + lane / 4;
            if (lane % 4 == 0) {
              store_bias_grad<T>(params, item, row, bias_sums[i][half * 2]);
            }
            bias_sums[i][half * 2] = bias_sums[i][half * 2 + 1] = 0;
          }
        }
      }
      // A loop with one copy of the epilogue: sums move down to the first place.
#pragma unroll 1
      for (int unit = 0; unit < Tile::kUnits; ++unit) {
        float pairs[4][2];
#pragma unroll
        for (int i = 0; i < 8; ++i) pairs[i / 2][i % 2] = sums[0][i / 2][i % 2];
        store_rows<T>(params, item, item.rows.first + warp_row + unit * 8, first_column, pairs);
        if (unit % 2 == 0) {
#pragma unroll
          for (int i = 0; i < 8; ++i) sums[0][i / 2][i % 2] = sums[0][i / 2][2 + i % 2];
        } else {
#pragma unroll
          for (int i = 0; i < 16; ++i) {
#pragma unroll
            for (int later = 1; later < kMT; ++later) {
              sums[later - 1][i / 4][i % 4] = sums[later][i / 4][i % 4];
            }
            sums[kMT - 1][i / 4][i % 4] = 0;
          }
        }
      }
    } else {
      using Sums = WarpSums<Tile>;
#pragma unroll
      for (int unit = 0; unit < Tile::kUnits; ++unit) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float& sum = sums[unit / 2][i / 2][unit % 2 * 2 + i % 2];
          shared.sums.store(Sums::place(warp, unit, i), sum);
          sum = 0;
        }
        float& sum = bias_sums[unit / 2][unit % 2 * 2];
        shared.sums.store(Sums::place(warp, unit, 8), sum);
        sum = 0;
      }
      __syncthreads();
      float total[Sums::kLaneSums] = {};
#pragma unroll
      for (int other = 0; other < Tile::kDepthWarps; ++other) {
#pragma unroll
        for (int i = 0; i < Sums::kLaneSums; ++i) total[i] += shared.sums.load(Sums::place(other, warp, i));
      }
      float pairs[4][2];
#pragma unroll
      for (int i = 0; i < 8; ++i) pairs[i / 2][i % 2] = total[i];
      const int row = item.rows.first + warp * 8;
      store_rows<T>(params, item, row, first_column, pairs);
      if ((duties & kSumsBias) != 0 && lane % 4 == 0)
        store_bias_grad<T>(params, item, row + lane / 4, total[8]);
    }
    index += gridDim.x;
    step = 0;
    enter(index);
  }
}

template <class T, PointwiseLie Lie, PointwiseTile Shape>
void launch_tile(Conv2dPass pass, const PointwiseParams& params, LaunchConfig config) {
  using Tile = BlockTile<T, Shape, Lie == PointwiseLie::kBothAcross, Lie != PointwiseLie::kBothAlong>;
  static const char* const kNames[] = {"conv2d::pointwise_fprop_mma", "conv2d::pointwise_dgrad_mma",
                                       "conv2d::pointwise_wgrad_mma"};
  config.threads = Tile::kThreads;
  config.shared_bytes = params.a.activation.saved != nullptr   ? sizeof(SharedSavedA<Tile>)
                        : params.b.activation.saved != nullptr ? sizeof(SharedSavedB<Tile>)
                                                               : sizeof(Shared<Tile>);
  launch(kNames[static_cast<int>(pass)], mma_kernel<T, Tile>, config, params);
}

template <class T, PointwiseLie Lie>
void launch_mma(Conv2dPass pass, const PointwiseParams& params, const PointwisePlan& plan,
                cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>(plan.grid));
  config.stream = stream;
  switch (plan.tile) {
    case PointwiseTile::kWide:
      return launch_tile<T, Lie, PointwiseTile::kWide>(pass, params, config);
    case PointwiseTile::kNarrow:
      return launch_tile<T, Lie, PointwiseTile::kNarrow>(pass, params, config);
    case PointwiseTile::kSmall:
      return launch_tile<T, Lie, PointwiseTile::kSmall>(pass, params, config);
  }
}

}  // namespace fastcnn::pointwise
