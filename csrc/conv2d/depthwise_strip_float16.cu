#include "conv2d/depthwise_strip.cuh"

template void fastcnn::launch_depthwise_strip<__half>(const DepthwiseStripParams&, const DepthwiseImagePlan&,
                                                      int, cudaStream_t);
