#include "conv2d/depthwise_large.cuh"

template void fastcnn::launch_depthwise_large<__half>(const DepthwiseLargeParams&, const DepthwiseImagePlan&,
                                                      cudaStream_t);
