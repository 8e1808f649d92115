// How a box of the image lies in shared memory: host arithmetic of the thin kernels' planners.
#pragma once

#include "common/ceil_div.h"
#include "conv2d/thin.h"

namespace fastcnn {

// Box rows (columns) that `tile` pixels see.
inline int64_t box_extent(int tile, int stride, int taps, int dilation) {
  return int64_t{tile - 1} * stride + int64_t{taps - 1} * dilation + 1;
}

// The least number from `least` on that leaves the rest that `stride` does.
inline int64_t congruent(int64_t least, int64_t stride, int vector) {
  return least + ((stride - least) % vector + vector) % vector;
}

// Elements of the arena that a box takes, with its pitches; the image's strides decide how it lies.
inline int64_t box_elements(const ThinBox& box, int vector, int64_t rows, int64_t columns, int64_t& row_pitch,
                            int64_t& plane_pitch) {
  const int64_t vectors = ceil_div(columns * box.pixel + vector - 1, vector);
  row_pitch = (vectors + 1) * vector;
  if (box.dense) row_pitch = congruent(row_pitch - 1, box.view.stride_h, vector);
  plane_pitch = ceil_div(rows * row_pitch, vector) * vector + vector;
  if (box.dense) plane_pitch = congruent(plane_pitch, box.view.stride_c, vector);
  return box.planes * plane_pitch + 2 * vector;
}

inline void size_box(ThinBox& box, int vector, int64_t rows, int64_t columns) {
  int64_t row_pitch, plane_pitch;
  box_elements(box, vector, rows, columns, row_pitch, plane_pitch);
  box.rows = static_cast<int>(rows);
  box.columns = static_cast<int>(columns);
  box.row_pitch = static_cast<int>(row_pitch);
  box.plane_pitch = static_cast<int>(plane_pitch);
  box.row_count = FastDiv(box.rows);
  box.vectors = FastDiv(static_cast<int>(ceil_div(columns * box.pixel + vector - 1, vector)));
}

// What the boxes of few output channels do not depend on: tensors, window, where the first tile's box begins.
// False where no such kernel covers the problem. In thin_output_plan.cpp.
bool describe_thin_output(Conv2dPass pass, const Conv2dParams& params, ThinOutputBoxParams& output);

}  // namespace fastcnn
