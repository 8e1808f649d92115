#include "conv2d/depthwise_strip.cuh"

template void fastcnn::launch_depthwise_strip<float>(const DepthwiseStripParams&, const DepthwiseImagePlan&,
                                                     int, cudaStream_t);
