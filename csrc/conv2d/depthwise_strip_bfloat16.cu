#include "conv2d/depthwise_strip.cuh"

template void fastcnn::launch_depthwise_strip<__nv_bfloat16>(const DepthwiseStripParams&,
                                                             const DepthwiseImagePlan&, int, cudaStream_t);
