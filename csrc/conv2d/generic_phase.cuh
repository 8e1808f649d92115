// The part of a pass that a block works in: all of it, or one phase of a strided dgrad.
//
// A stride of s cuts an axis of dgrad's result into phases: positions s apart get from the same taps, every
// tap_step-th of them, so a phase is a dgrad of stride 1 over a sub-lattice. All phases run in one launch,
// each with the row tiles of the largest. A block finds its phase's numbers from the phase's index: a table
// would bound how many there may be. What divides (pixels of a phase, its taps) takes two values an axis at
// most, so its FastDivs are made on the host.
#pragma once

#include <cuda_runtime.h>

#include "conv2d/generic.h"

namespace fastcnn::generic {

// One axis of a phase.
struct AxisPhase {
  int first;      // position
  int count;      // of positions
  bool fewer;     // positions than the first phase has
  int first_tap;  // of those that reach the phase
  int taps;
  bool fewer_taps;  // than tap 0's phase has
  int origin;       // what the first position sees of the output gradient through its first tap
};

// Tap r reaches position x if stride divides x + pad - r * dilation. In units of their common divisor with
// the stride, taps lie prime to tap_step apart: the first is found by the inverse of that distance.
__device__ inline AxisPhase axis_phase(const PhaseAxis& axis, int index) {
  AxisPhase phase;
  phase.first = index - axis.phases + axis.rotation;
  if (phase.first < 0) phase.first += axis.phases;
  phase.fewer = phase.first >= axis.long_phases;
  phase.count = axis.least_count + (phase.fewer ? 0 : 1);

  int rest, residue;
  const int padded = phase.first + axis.pad;
  const int units = axis.common.divide(padded, rest);
  axis.tap_step.divide(units, residue);
  const int tap = static_cast<int>(int64_t{residue} * axis.inverse % axis.tap_step.divisor());
  phase.fewer_taps = tap >= axis.long_tap_phases;
  phase.taps = rest == 0 ? axis.least_taps + (phase.fewer_taps ? 0 : 1) : 0;
  phase.first_tap = phase.taps > 0 ? tap : 0;
  phase.origin = (padded - phase.first_tap * axis.dilation) / axis.stride;
  return phase;
}

// fprop and wgrad.
class WholePass {
 public:
  static constexpr bool kDgrad = false;
  const GenericParams& params;

  __device__ WholePass(const GenericParams& p, int) : params(p) {}
  __device__ int64_t rows() const { return params.rows; }
  __device__ int reduction() const { return static_cast<int>(params.reduction); }
  __device__ int first_h() const { return params.first_h; }
  __device__ int first_w() const { return params.first_w; }
  __device__ int64_t output_offset() const { return 0; }
  __device__ int64_t weight_offset() const { return 0; }
  __device__ const FastDiv& image_width() const { return params.image_width[0]; }
  __device__ const FastDiv& image_pixels() const { return params.image_pixels[0]; }
  __device__ const FastDiv& inner_s() const { return params.inner_s[0]; }
  __device__ const FastDiv& inner_rs() const { return params.inner_rs[0]; }
};

// dgrad.
class StridePhase {
 public:
  static constexpr bool kDgrad = true;
  const GenericParams& params;

  __device__ StridePhase(const GenericParams& p, int index)
      : params(p),
        rows_(p.rows),
        reduction_(static_cast<int>(p.reduction)),
        first_h_(p.first_h),
        first_w_(p.first_w) {
    if (!params.strided) return;
    int index_w;
    const int index_h = params.phase_count_w.divide(index, index_w);
    const AxisPhase h = axis_phase(params.phase_h, index_h), w = axis_phase(params.phase_w, index_w);
    rows_ = int64_t{params.images} * h.count * w.count;
    reduction_ = h.taps * w.taps * params.inner_channels.divisor();
    first_h_ = h.origin;
    first_w_ = w.origin;
    output_offset_ = h.first * params.phase_h.output_stride + w.first * params.phase_w.output_stride;
    weight_offset_ = h.first_tap * params.phase_h.weight_stride + w.first_tap * params.phase_w.weight_stride;
    width_ = w.fewer;
    pixels_ = 2 * h.fewer + w.fewer;
    s_ = w.fewer_taps;
    rs_ = 2 * h.fewer_taps + w.fewer_taps;
  }
  __device__ int64_t rows() const { return rows_; }
  __device__ int reduction() const { return reduction_; }
  __device__ int first_h() const { return first_h_; }
  __device__ int first_w() const { return first_w_; }
  __device__ int64_t output_offset() const { return output_offset_; }
  __device__ int64_t weight_offset() const { return weight_offset_; }
  __device__ const FastDiv& image_width() const { return params.image_width[width_]; }
  __device__ const FastDiv& image_pixels() const { return params.image_pixels[pixels_]; }
  __device__ const FastDiv& inner_s() const { return params.inner_s[s_]; }
  __device__ const FastDiv& inner_rs() const { return params.inner_rs[rs_]; }

 private:
  int64_t rows_, output_offset_ = 0, weight_offset_ = 0;
  int reduction_, first_h_, first_w_;
  int width_ = 0, pixels_ = 0, s_ = 0, rs_ = 0;
};

}  // namespace fastcnn::generic
