// The implicit-GEMM convolution that is right for every shape: its launch parameters and launchers.
#pragma once

#include <cuda_runtime.h>

#include "common/fastdiv.h"
#include "conv2d/plan.h"
#include "conv2d/problem.h"

namespace fastcnn {

// One axis of the phases of a strided dgrad. Phase number i begins at position (i + rotation) % phases; where
// the stride is not larger than the axis, that of tap 0, which has the most taps, comes first.
struct PhaseAxis {
  int phases, rotation;
  int long_phases, least_count;  // phases before long_phases have one position more than least_count
  int pad, dilation, stride;
  FastDiv common;                        // gcd(stride, dilation)
  FastDiv tap_step;                      // stride / common: a phase's taps lie so far apart
  int inverse;                           // of dilation / common, modulo tap_step
  int long_tap_phases, least_taps;       // first taps before long_tap_phases have one more after them
  int64_t output_stride, weight_stride;  // of one position, of one tap
};

// Every pass is a product C[M x N] = A[M x L] * B[L x N] for each group, with L summed over:
//            M                  N                  L
//   fprop    output pixels      filters K/G        (r, s, c)
//   dgrad    input pixels       channels C/G       (r, s, filter)
//   wgrad    filters K/G        (r, s, c)          output pixels, cut into `splits`
// (r, s, c) runs c fastest when channels_inner, (c, r, s) with s fastest when not.
// From pixel (h, w) of the result, tap (r, s) sees element (h * pixel_h + first_h + r * tap_h, likewise w) of
// `input`, which has image_h x image_w pixels; dgrad's `input` is the output gradient, and its taps walk
// backward. A strided dgrad is a product for each phase of the stride (generic_phase.cuh): rows, reduction
// and first_* are then of the largest, strides of `output` and `weight` from one of a phase's pixels or taps
// to the next, and the FastDivs' second values are those of phases with fewer pixels or taps: 2 * h + w.
struct GenericParams {
  TensorView input;
  TensorView weight;
  TensorView grad;  // wgrad's output gradient
  TensorView output;
  void* workspace;
  Epilogue epilogue;               // fprop
  GradActivation grad_activation;  // dgrad, wgrad
  void* bias_grad;                 // wgrad, or null
  DType dtype;
  int filters;        // K, of all groups
  int group_filters;  // K/G
  int r, s;
  int image_h, image_w;
  int pixel_h, pixel_w, first_h, first_w, tap_h, tap_w;
  bool channels_inner;
  bool vector_store;  // the epilogue writes 4 neighbouring columns as one access
  int splits;
  int64_t parts;         // splits of wgrad, phases of dgrad
  int columns;           // N
  int64_t rows;          // M
  int64_t reduction;     // L
  int64_t split_length;  // of L
  FastDiv row_tiles, column_tiles, group_count;
  FastDiv inner_channels, inner_s[2], inner_rs[4];  // take a tap index apart
  FastDiv image_width[2], image_pixels[4];          // take a pixel index apart
  bool strided;                                     // dgrad; what follows is set where it is
  int images;
  FastDiv phase_count_w;
  PhaseAxis phase_h, phase_w;
};

// A tile's rows, columns and reduction depth; the kernels assert that theirs are these.
struct TileShape {
  int rows, columns, depth;
};
inline constexpr TileShape kWideTileShape{128, 128, 8};
inline constexpr TileShape kNarrowTileShape{128, 32, 16};
inline constexpr TileShape kSmallTileShape{32, 32, 64};
inline constexpr TileShape kTinyTileShape{16, 16, 128};
inline constexpr const TileShape& tile_shape(Conv2dTile tile) {
  switch (tile) {
    case Conv2dTile::kWide:
      return kWideTileShape;
    case Conv2dTile::kNarrow:
      return kNarrowTileShape;
    case Conv2dTile::kSmall:
      return kSmallTileShape;
    case Conv2dTile::kTiny:
      break;
  }
  return kTinyTileShape;
}
inline constexpr int kTileThreads = 256;
inline constexpr int kTilePad = 4;  // elements between a tile's rows in shared memory

// Fills what the planner decides for the generic path. Throws std::runtime_error where an index would not
// fit.
void plan_generic(Conv2dPass pass, const Conv2dParams& params, const Chip& chip, Conv2dPlan& plan);

void launch_generic(Conv2dPass pass, const Conv2dParams& params, const Conv2dPlan& plan, cudaStream_t stream);

namespace generic {
// Each element type has .cu files of its own.
template <class T>
void launch_fprop(const GenericParams& params, const Conv2dPlan& plan, cudaStream_t stream);
template <class T>
void launch_dgrad(const GenericParams& params, const Conv2dPlan& plan, cudaStream_t stream);
template <class T>
void launch_wgrad(const GenericParams& params, const Conv2dPlan& plan, cudaStream_t stream);
}  // namespace generic

}  // namespace fastcnn
